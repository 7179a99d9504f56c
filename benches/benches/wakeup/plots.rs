//! The figures as pictures.

use std::error::Error;
use std::path::Path;

use spinwake_apps::plot::{self, Axis, Frame, Series};
use spinwake_pmd::soft::Gap;

use super::turns::Case;

/// Where the plots are.
const PLOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/plots");

/// Draws response times at each mean gap, and processor time over mean gaps, all under Poisson traffic if that was measured.
pub(crate) fn draw(cases: &[Case]) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(PLOTS);
    std::fs::create_dir_all(folder)?;
    let is_poisson = |case: &&Case| case.pattern.0 == Gap::Poisson;
    let pattern = cases.iter().find(is_poisson).or(cases.first()).map(|case| case.pattern);
    let cases: Vec<&Case> = cases.iter().filter(|case| Some(case.pattern) == pattern).collect();
    for case in &cases {
        let title = format!("Response times, {} gaps of {} us", case.pattern, case.gap_us);
        let frame = Frame {
            title: &title,
            x: Axis { label: "one frame in so many waits longer", log: true },
            y: Axis { label: "from visible to doorbell, us", log: true },
        };
        let series: Vec<Series> = case.policies.iter().map(|measured| measured.curve()).collect();
        plot::lines(&folder.join(format!("wakeup-latency-{}us.svg", case.gap_us)), frame, &series)?;
    }
    let title = pattern.map_or_else(String::new, |pattern| format!("Processor time of a worker, {pattern} gaps"));
    let frame = Frame {
        title: &title,
        x: Axis { label: "mean gap between frames, us", log: true },
        y: Axis { label: "share of a core, %", log: true },
    };
    let series = |(index, name): (usize, String)| Series {
        name,
        points: cases
            .iter()
            .filter_map(|case| Some((f64::from(case.gap_us), case.policies.get(index)?.sum.cpu_share() * 100.0)))
            .collect(),
    };
    let names =
        cases.first().map_or_else(Vec::new, |case| case.policies.iter().map(|one| one.policy.to_string()).collect());
    let series: Vec<Series> = names.into_iter().enumerate().map(series).collect();
    plot::lines(&folder.join("wakeup-cpu.svg"), frame, &series)?;
    eprintln!("plots are in {}", folder.display());
    Ok(())
}
