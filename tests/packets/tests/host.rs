//! The fixtures over the logic alone: needs nothing.
use tests_packets::host::Host;
use tests_packets::{cases, check};

#[test]
fn the_logic_does_with_every_packet_what_the_fixtures_say() {
    let (mut packets, mut wrong) = (0, Vec::new());
    let all = cases();
    for case in &all {
        if let Err(e) = check(case, &mut Host::of(case)) {
            wrong.push(format!("{e:#}"));
        }
        packets += case.steps.len();
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
    assert!(
        all.len() >= 300 && packets >= 1200,
        "only {} cases with {packets} packets",
        all.len()
    );
}
