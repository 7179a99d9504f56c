//! The page as a browser shows it: nothing wider than the window, at two widths, light and dark.
#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Names that a browser may have.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// A slow machine starts a browser in some seconds.
const PATIENCE: Duration = Duration::from_secs(180);

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|dir| BROWSERS.map(|name| dir.join(name))).find(|file| file.is_file())
}

fn tune(args: &[&str]) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_spinwake-tune")).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&run.stderr));
    text
}

/// Shows `page` in a frame of this many pixels and returns the width that its contents take.
///
/// A headless window has a least width of its own, so a frame stands in for a narrow one. What is measured is written into the
/// outer page, which the browser prints.
fn shown_width(browser: &Path, folder: &Path, page: &Path, width: u32, dark: bool) -> u32 {
    // The page forbids scripts to itself, so the frame's owner measures; same origin, as its text is given in line.
    let text = fs::read_to_string(page).unwrap().replace('&', "&amp;").replace('"', "&quot;");
    let outer = folder.join("outer.html");
    let measure = "const d = document.querySelector('iframe').contentDocument; \
                   document.title = 'width=' + Math.max(d.documentElement.scrollWidth, d.body.scrollWidth) + ';';";
    let frame = format!(
        "<!DOCTYPE html><title>none</title><iframe style=\"width:{width}px;height:900px;border:0\" srcdoc=\"{text}\" \
         onload=\"{measure}\"></iframe>"
    );
    fs::write(&outer, frame).unwrap();
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--virtual-time-budget=5000",
        // Theirs would be a part of the width.
        "--hide-scrollbars",
        "--dump-dom",
    ]);
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    command.arg(format!("--user-data-dir={}", folder.join("profile").display()));
    command.arg(format!("file://{}", outer.display()));
    let out = fs::File::create(folder.join("dom.html")).unwrap();
    let mut child = command.stdout(out).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the browser did not end");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let dom = fs::read_to_string(folder.join("dom.html")).unwrap();
    let title =
        dom.split_once("<title>width=").and_then(|(_, rest)| rest.split_once(';')).map(|(number, _)| number.parse());
    match title {
        Some(Ok(number)) => number,
        _ => panic!("the browser told no width: {}", dom.chars().take(300).collect::<String>()),
    }
}

#[test]
fn the_page_is_no_wider_than_its_window() {
    let Some(browser) = browser() else {
        println!("SKIPPED: no browser is installed (Debian: apt-get install chromium), so the page was not looked at");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let core = fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap()
        .trim()
        .split([',', '-'])
        .next()
        .unwrap()
        .to_owned();
    tune(&["jitter", "--core", &core, "--seconds", "0.2", "--save", &file("before.json")]);
    // A command line without a blank in it, as long as they come.
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("proc")).unwrap();
    fs::write(root.join("proc/cmdline"), "x".repeat(2_000)).unwrap();
    let fake = root.display().to_string();
    let before = file("before.json");
    // What measures can tell.
    let wide = folder.path().join("wide.html");
    fs::write(&wide, "<!DOCTYPE html><body style=\"margin:0\"><p style=\"width:700px\">wide</p>").unwrap();
    assert_eq!(shown_width(&browser, folder.path(), &wide, 420, false), 700);
    for (name, root) in [("real.html", "/"), ("long.html", fake.as_str())] {
        let page = file(name);
        tune(&["--root", root, "report", &page, "--core", &core, "--seconds", "0.2", "--before", &before]);
        for (width, dark) in [(1280, false), (420, false), (420, true)] {
            let shown = shown_width(&browser, folder.path(), Path::new(&page), width, dark);
            assert_eq!(shown, width, "{name} at {width} pixels is {shown} pixels wide");
        }
    }
}
