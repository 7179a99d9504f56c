#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| spinwake_pmd::fuzz::virtio_user_replies(bytes));
