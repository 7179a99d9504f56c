#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| spinwake_pmd::fuzz::driver_rings(bytes));
