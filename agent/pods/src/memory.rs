//! What one pod's worker remembers between plans. All of it may be lost: a new agent plans on from the runtime's view.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ResourceRequirements;
use std::collections::BTreeMap;

/// First pause after a failed start; doubled each time. Upstream's image pull back-off starts at the same value.
pub const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// Longest pause of any back-off of the node agent (upstream's `MaxContainerBackOff`).
pub const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(300);
/// For so long a failed pull is shown by its own reason; afterwards as `ImagePullBackOff`.
const SHOWN_AS_ERROR: SignedDuration = SignedDuration::from_secs(2);

/// Why something could not be started.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The waiting reason, such as `ErrImagePull` or `CreateContainerConfigError`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When it happened.
    pub at: Timestamp,
    /// How long to wait from then.
    pub pause: SignedDuration,
}

impl Failure {
    /// When the next try may be made.
    #[must_use]
    pub fn retry_at(&self) -> Timestamp {
        self.at + self.pause
    }

    /// Reason and message as the status shows them at `now`, and when that changes.
    #[must_use]
    pub fn shown(&self, image: &str, now: Timestamp) -> (String, String, Option<Timestamp>) {
        let turns = self.at + SHOWN_AS_ERROR;
        match self.reason {
            "ErrImagePull" if now >= turns => {
                let message = format!("Back-off pulling image {image:?}: ErrImagePull: {}", self.message);
                ("ImagePullBackOff".into(), message, None)
            }
            "ErrImagePull" => (self.reason.into(), self.message.clone(), Some(turns)),
            _ => (self.reason.into(), self.message.clone(), None),
        }
    }
}

/// What a worker remembers of its pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The last failure to start each container; removed by success.
    pub failures: BTreeMap<String, Failure>,
    /// The last failure to make a sandbox.
    pub sandbox_failure: Option<Failure>,
    /// The lowest attempt number a new sandbox may have: a failed attempt's name stays reserved in the runtime.
    pub next_sandbox_attempt: u32,
    /// Since when the pod is being stopped.
    pub stopping_since: Option<Timestamp>,
    /// Containers being stopped, with the moment by which they are killed.
    pub stopping: BTreeMap<String, Timestamp>,
    /// A verdict on the whole pod that ends it (`DeadlineExceeded`, `Evicted` …).
    pub verdict: Option<Verdict>,
    /// Whether the object is gone from the API.
    pub gone: bool,
    /// When the agent first saw the pod.
    pub seen: Option<Timestamp>,
    /// The resources that each container was last started or resized with, and the number of that run.
    pub resources: BTreeMap<String, (u32, ResourceRequirements)>,
    /// The last failure to resize containers as they run; removed by success.
    pub resize_failure: Option<Failure>,
    /// Whether volumes, cgroup and addresses of the stopped pod are gone.
    pub cleaned: bool,
}

/// A reason for which the agent ends a pod by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// `status.reason`.
    pub reason: &'static str,
    /// `status.message`.
    pub message: String,
}

impl Memory {
    /// Notes a failed start of `name`: pull failures double their pause, others retry sooner since what they wait
    /// for (a config map, a secret) is usually made moments later.
    pub fn failed(&mut self, name: &str, reason: &'static str, message: String, now: Timestamp) {
        let pause = next_pause(self.failures.get(name), reason);
        self.failures.insert(
            name.to_owned(),
            Failure {
                reason,
                message,
                at: now,
                pause,
            },
        );
    }

    /// Notes that resizing failed: memory below what is in use can be had only later.
    pub fn resize_failed(&mut self, message: String, now: Timestamp) {
        let reason = "ResizeError";
        let pause = next_pause(self.resize_failure.as_ref(), reason);
        self.resize_failure = Some(Failure {
            reason,
            message,
            at: now,
            pause,
        });
    }

    /// Notes a failed sandbox with `attempt`.
    pub fn sandbox_failed(&mut self, attempt: u32, message: String, now: Timestamp) {
        let reason = "FailedCreatePodSandBox";
        let pause = next_pause(self.sandbox_failure.as_ref(), reason);
        self.sandbox_failure = Some(Failure {
            reason,
            message,
            at: now,
            pause,
        });
        self.next_sandbox_attempt = self.next_sandbox_attempt.max(attempt + 1);
    }
}

fn next_pause(last: Option<&Failure>, reason: &str) -> SignedDuration {
    let pull = reason == "ErrImagePull";
    let (first, longest) = match pull {
        true => (FIRST_PAUSE, LONGEST_PAUSE),
        false => (SignedDuration::from_secs(1), SignedDuration::from_secs(20)),
    };
    match last.filter(|l| l.reason == reason) {
        Some(last) => (last.pause * 2).min(longest),
        None => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn repeated_pull_failures_double_their_pause_up_to_five_minutes() {
        let mut memory = Memory::default();
        let pauses: Vec<i64> = (0..7)
            .map(|n| {
                memory.failed("a", "ErrImagePull", "no".into(), at(n));
                memory.failures["a"].pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_failed_pull_is_shown_as_an_error_first_and_as_back_off_afterwards() {
        let mut memory = Memory::default();
        memory.failed("a", "ErrImagePull", "not found".into(), at(0));
        let failure = &memory.failures["a"];
        assert_eq!(failure.shown("x", at(1)).0, "ErrImagePull");
        assert_eq!(failure.shown("x", at(1)).2, Some(at(2)));
        assert_eq!(failure.shown("x", at(2)).0, "ImagePullBackOff");
    }

    #[test]
    fn a_failed_sandbox_reserves_its_attempt_number() {
        let mut memory = Memory::default();
        memory.sandbox_failed(3, "cni".into(), at(0));
        assert_eq!(memory.next_sandbox_attempt, 4);
    }
}
