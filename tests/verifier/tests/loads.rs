//! Every program loads on this kernel, within the budget that stands for it in `budget.toml`.

use agent_datapath::verified_programs;

/// What `cargo xtask test-kernel --bless` wrote for this kernel.
fn budget(kernel: &str) -> Option<toml::Table> {
    let all: toml::Table = include_str!("../budget.toml")
        .parse()
        .expect("budget.toml is TOML");
    all.get(kernel)?.as_table().cloned()
}

#[test]
fn every_program_loads_within_its_budget() {
    let programs = verified_programs().expect("every program loads");
    assert!(!programs.is_empty());
    // Outside of the matrix there is no pinned kernel to hold a number against.
    let Ok(kernel) = std::env::var("SKEP_KERNEL") else {
        return;
    };
    // Before 5.16 the kernel does not say how many it walked.
    let counts: Vec<(String, u32)> = programs
        .into_iter()
        .filter_map(|p| Some((p.name, p.instructions?)))
        .collect();
    report(&counts);
    let budget = budget(&kernel).unwrap_or_default();
    for (program, count) in counts {
        let most = budget.get(&program).and_then(toml::Value::as_integer);
        let most =
            most.unwrap_or_else(|| panic!("{program} has no budget: run `cargo xtask test-kernel --bless`"));
        assert!(
            i64::from(count) <= most,
            "{program}: {count} instructions, the budget is {most}"
        );
    }
}

/// For `--bless`: the matrix reads this file.
fn report(counts: &[(String, u32)]) {
    if let Some(path) = std::env::var_os("SKEP_BUDGET") {
        let lines: String = counts
            .iter()
            .map(|(program, count)| format!("{program} {count}\n"))
            .collect();
        std::fs::write(path, lines).expect("the counts can be written");
    }
}
