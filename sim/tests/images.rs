//! Crash images of short sequences, and the power to detect.

use std::panic::{AssertUnwindSafe, catch_unwind};

use spillway_sim::images::{Options, PLANTS, Report, run};

const OPTIONS: Options = Options { length: 1, limit: u64::MAX, run: None, seed: 1, plant: None };

fn clean(options: &Options) -> Report {
    let report = run(options);
    println!("{report}");
    assert_eq!(report.bad, 0, "{report}");
    assert_eq!(report.sequences[0], report.sequences[1], "every sequence");
    report
}

#[test]
fn no_power_loss_within_one_operation_loses_anything() {
    let report = clean(&OPTIONS);
    assert!(report.images > 15_000 && report.torn > 5_000, "{report}");
    assert!(report.second[0] > 300, "{report}");
    assert!(report.refused_lawfully > 500, "blocks that tear within are met: {report}");
}

#[test]
fn no_power_loss_within_two_operations_loses_anything() {
    let report = clean(&Options { length: 2, limit: 40_000, ..OPTIONS });
    assert!(report.images >= 40_000, "{report}");
}

#[test]
fn the_same_seed_makes_the_same_images() {
    let options = Options { length: 2, limit: 5_000, ..OPTIONS };
    assert_eq!(run(&options).to_string(), run(&options).to_string());
}

#[test]
fn planted_faults_are_found() {
    for plant in PLANTS {
        let options = Options { length: 2, limit: 12_000, plant: Some(plant), ..OPTIONS };
        // An assertion of a core that fails is a finding too.
        let found = catch_unwind(AssertUnwindSafe(|| run(&options)));
        assert!(found.is_err() || found.is_ok_and(|report| report.bad > 0), "{plant:?}");
    }
}
