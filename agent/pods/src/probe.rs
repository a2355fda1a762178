//! Startup, liveness and readiness probes as a state machine; the edge runs the checks and reports what they found.
//!
//! Semantics: Kubernetes documentation, "Liveness, Readiness, and Startup Probes".

use crate::model::Member;
use crate::view::Instance;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Probe;
use std::collections::BTreeMap;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Gates the other two.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Its failure takes the pod out of services.
    Readiness,
}

impl Kind {
    /// As events and messages name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }
}

/// A probe that asks for the container to be killed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    /// `startup` or `liveness`.
    pub probe: &'static str,
    /// The probe's own grace period in seconds.
    pub grace: Option<i64>,
}

/// What the probes say about one container instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The startup probe passed, or there is none.
    pub started: bool,
    /// Started and the readiness probe passes, or there is none.
    pub ready: bool,
    /// Whether it has to be killed.
    pub failed: Option<Failed>,
}

/// Outcomes by container instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcomes(BTreeMap<String, Outcome>);

impl Outcomes {
    /// Notes what the probes say about the instance `id`.
    pub fn set(&mut self, id: &str, outcome: Outcome) {
        self.0.insert(id.to_owned(), outcome);
    }

    /// Whether the running instance counts as started.
    #[must_use]
    pub fn started(&self, member: &Member, run: &Instance) -> bool {
        self.0
            .get(&run.id)
            .map_or(member.spec.startup_probe.is_none(), |o| o.started)
    }

    /// Whether the running instance is ready.
    #[must_use]
    pub fn ready(&self, member: &Member, run: &Instance) -> bool {
        let unprobed = member.spec.readiness_probe.is_none() && member.spec.startup_probe.is_none();
        self.0.get(&run.id).map_or(unprobed, |o| o.ready)
    }

    /// The probe for which the instance has to be killed.
    #[must_use]
    pub fn failure(&self, run: &Instance) -> Option<&Failed> {
        self.0.get(&run.id).and_then(|o| o.failed.as_ref())
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// It passed.
    Pass,
    /// It failed, with the reason.
    Fail(String),
}

#[derive(Clone, Debug)]
struct Track {
    kind: Kind,
    probe: Probe,
    next: Timestamp,
    in_flight: bool,
    passes: i32,
    failures: i32,
}

/// The probes of one container instance.
#[derive(Clone, Debug)]
pub struct Prober {
    tracks: Vec<Track>,
    outcome: Outcome,
}

impl Prober {
    /// Begins probing an instance that started at `started`. `was_ready` carries the reported readiness over a
    /// restart of the agent, so that adopting a pod does not take it out of its services.
    #[must_use]
    pub fn new(member: &Member, started: Timestamp, was_ready: bool) -> Self {
        let spec = &member.spec;
        let kinds = [
            (Kind::Startup, &spec.startup_probe),
            (Kind::Liveness, &spec.liveness_probe),
            (Kind::Readiness, &spec.readiness_probe),
        ];
        let track = |(kind, probe): (Kind, &Option<Probe>)| Some(Track::new(kind, probe.clone()?, started));
        let tracks: Vec<Track> = kinds.into_iter().filter_map(track).collect();
        let unprobed = |kind| !tracks.iter().any(|t: &Track| t.kind == kind);
        let started = unprobed(Kind::Startup) || was_ready;
        let ready = started && (unprobed(Kind::Readiness) || was_ready);
        Self {
            outcome: Outcome {
                started,
                ready,
                failed: None,
            },
            tracks,
        }
    }

    /// What the probes say now.
    #[must_use]
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// When the next check is due; none while all are running or nothing is to be checked.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.tracks
            .iter()
            .filter(|t| self.active(t) && !t.in_flight)
            .map(|t| t.next)
            .min()
    }

    /// The checks due at `now`; each counts as running until [`Prober::record`] is called for it.
    pub fn due(&mut self, now: Timestamp) -> Vec<(Kind, Probe)> {
        let active: Vec<bool> = self.tracks.iter().map(|t| self.active(t)).collect();
        let due = self
            .tracks
            .iter_mut()
            .zip(active)
            .filter(|(t, active)| *active && !t.in_flight && t.next <= now);
        due.map(|(track, _)| {
            track.in_flight = true;
            track.next =
                now + SignedDuration::from_secs(i64::from(track.probe.period_seconds.unwrap_or(10).max(1)));
            (track.kind, track.probe.clone())
        })
        .collect()
    }

    /// Takes the result of a check in. True when the outcome changed.
    pub fn record(&mut self, kind: Kind, found: &Found, now: Timestamp) -> bool {
        let before = self.outcome.clone();
        if let Some(track) = self.tracks.iter_mut().find(|t| t.kind == kind) {
            let settled = track.count(found);
            let grace = track.probe.termination_grace_period_seconds;
            self.settle(kind, settled, grace, now);
        }
        self.outcome != before
    }

    fn settle(&mut self, kind: Kind, settled: Option<bool>, grace: Option<i64>, now: Timestamp) {
        match (kind, settled) {
            (_, None) => {}
            (Kind::Startup, Some(true)) => self.start(now),
            (Kind::Readiness, Some(ready)) => self.outcome.ready = ready && self.outcome.started,
            (Kind::Liveness, Some(true)) => {}
            (Kind::Startup | Kind::Liveness, Some(false)) => {
                self.outcome.failed = Some(Failed {
                    probe: kind.name(),
                    grace,
                });
            }
        }
    }

    /// The startup probe passed: the others begin at once.
    fn start(&mut self, now: Timestamp) {
        self.outcome.started = true;
        for track in &mut self.tracks {
            track.next = track.next.min(now);
        }
        self.outcome.ready |= !self.tracks.iter().any(|t| t.kind == Kind::Readiness);
    }

    fn active(&self, track: &Track) -> bool {
        let startup = track.kind == Kind::Startup;
        self.outcome.failed.is_none() && startup != self.outcome.started
    }
}

impl Track {
    fn new(kind: Kind, probe: Probe, started: Timestamp) -> Self {
        let delay = SignedDuration::from_secs(i64::from(probe.initial_delay_seconds.unwrap_or(0)));
        Self {
            kind,
            probe,
            next: started + delay,
            in_flight: false,
            passes: 0,
            failures: 0,
        }
    }

    /// Counts a result; `Some` once the threshold of its kind is reached.
    fn count(&mut self, found: &Found) -> Option<bool> {
        self.in_flight = false;
        match found {
            Found::Pass => {
                self.failures = 0;
                self.passes += 1;
                (self.passes >= self.probe.success_threshold.unwrap_or(1).max(1)).then_some(true)
            }
            Found::Fail(_) => {
                self.passes = 0;
                self.failures += 1;
                (self.failures >= self.probe.failure_threshold.unwrap_or(3).max(1)).then_some(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use serde_json::{Value, json};

    fn prober(probes: Value) -> Prober {
        let mut container = json!({"name": "a"});
        for (key, value) in probes.as_object().unwrap() {
            container[key] = value.clone();
        }
        let pod = pod(json!({"containers": [container]}));
        Prober::new(&pod.members[0], at(0), false)
    }

    fn fail() -> Found {
        Found::Fail("no".into())
    }

    fn kinds(prober: &mut Prober, now: i64) -> Vec<Kind> {
        prober.due(at(now)).into_iter().map(|(k, _)| k).collect()
    }

    #[test]
    fn without_probes_a_container_is_started_and_ready_and_nothing_is_due() {
        let prober = prober(json!({}));
        assert_eq!(
            prober.outcome(),
            &Outcome {
                started: true,
                ready: true,
                failed: None
            }
        );
        assert_eq!(prober.next(), None);
    }

    #[test]
    fn the_first_check_waits_for_its_delay_and_the_next_for_its_period() {
        let mut p = prober(json!({"readinessProbe": {"initialDelaySeconds": 5, "periodSeconds": 3}}));
        assert_eq!(p.next(), Some(at(5)));
        assert_eq!(kinds(&mut p, 5), [Kind::Readiness]);
        assert_eq!(p.next(), None, "a check that runs is not started again");
        assert!(p.record(Kind::Readiness, &Found::Pass, at(5)));
        assert_eq!(p.next(), Some(at(8)));
        assert!(p.outcome().ready);
    }

    #[test]
    fn readiness_is_lost_only_after_the_threshold_of_failures_in_a_row() {
        let mut p = prober(json!({"readinessProbe": {"failureThreshold": 2}}));
        p.record(Kind::Readiness, &Found::Pass, at(0));
        assert!(!p.record(Kind::Readiness, &fail(), at(1)));
        p.record(Kind::Readiness, &Found::Pass, at(2));
        assert!(!p.record(Kind::Readiness, &fail(), at(3)));
        assert!(p.record(Kind::Readiness, &fail(), at(4)));
        assert!(!p.outcome().ready);
    }

    #[test]
    fn a_success_threshold_above_one_wants_passes_in_a_row() {
        let mut p = prober(json!({"readinessProbe": {"successThreshold": 2}}));
        assert!(!p.record(Kind::Readiness, &Found::Pass, at(0)));
        p.record(Kind::Readiness, &fail(), at(1));
        assert!(!p.record(Kind::Readiness, &Found::Pass, at(2)));
        assert!(p.record(Kind::Readiness, &Found::Pass, at(3)));
    }

    #[test]
    fn a_failed_liveness_probe_asks_for_a_kill_once_and_then_rests() {
        let mut p =
            prober(json!({"livenessProbe": {"failureThreshold": 1, "terminationGracePeriodSeconds": 4}}));
        kinds(&mut p, 0);
        assert!(p.record(Kind::Liveness, &fail(), at(0)));
        assert_eq!(
            p.outcome().failed,
            Some(Failed {
                probe: "liveness",
                grace: Some(4)
            })
        );
        assert_eq!(p.next(), None);
    }

    #[test]
    fn the_startup_probe_holds_the_others_back_and_then_lets_them_start_at_once() {
        let probes = json!({
            "startupProbe": {"periodSeconds": 1}, "livenessProbe": {"initialDelaySeconds": 60}, "readinessProbe": {}});
        let mut p = prober(probes);
        assert_eq!(kinds(&mut p, 100), [Kind::Startup]);
        assert!(p.record(Kind::Startup, &Found::Pass, at(100)));
        assert!(p.outcome().started && !p.outcome().ready);
        assert_eq!(kinds(&mut p, 100), [Kind::Liveness, Kind::Readiness]);
    }

    #[test]
    fn readiness_known_from_before_an_agent_restart_is_kept() {
        let pod = pod(json!({"containers": [{"name": "a", "readinessProbe": {}}]}));
        assert!(Prober::new(&pod.members[0], at(0), true).outcome().ready);
    }
}
