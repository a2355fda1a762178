//! The loaded programs of a node, by PROG_TEST_RUN (root).
use crate::check::{Done, Node};
use crate::{Case, Hook};
use agent_datapath::Datapath;
use agent_services::Existing;
use anyhow::{Result, bail, ensure};
use datapath_abi::programs;
use std::time::Duration;
use tests_lab::Lab;

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// The program of a hook.
pub fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => programs::FROM_POD,
        Hook::ToPod => programs::TO_POD,
        Hook::FromUplink => programs::FROM_UPLINK,
        Hook::ToUplink => programs::TO_UPLINK,
    }
}

/// Programs the services of a case, one object each.
///
/// # Errors
/// The kernel refused it.
pub fn serve(lab: &mut Lab, case: &Case) -> Result<()> {
    for service in &case.services {
        lab.planner.service(service.view.clone());
        lab.planner.slice(service.slice.clone());
    }
    lab.program()
}

/// Takes them away again, with everything that is remembered: flows of one case must not answer for the next.
///
/// # Errors
/// The kernel refused it, or something stayed.
pub fn unserve(lab: &mut Lab, case: &Case) -> Result<()> {
    for service in &case.services {
        lab.planner.service_gone(&service.view.name);
    }
    lab.program()?;
    ensure!(lab.datapath.existing()? == Existing::default());
    lab.datapath.forget_flows()?;
    Ok(())
}

/// The programs as a node of the fixtures.
pub struct Kernel<'a>(pub &'a Datapath);

impl Node for Kernel<'_> {
    fn meet(&mut self, hook: Hook, frame: &[u8]) -> Result<Done> {
        let (verdict, got) = self.0.try_packet(program(hook), frame)?;
        Ok(match verdict {
            TC_ACT_OK => Done::Passed(got),
            TC_ACT_SHOT => Done::Dropped,
            TC_ACT_REDIRECT => Done::Rejected(got),
            other => bail!("verdict {other}"),
        })
    }

    /// The kernel's clock is nobody's to set: what it remembers is made older, which cannot be older than the machine.
    fn wait(&mut self, time: Duration) -> Result<bool> {
        let time = u64::try_from(time.as_nanos())?;
        let mut memory = self.0.flow_memory()?;
        let flows = memory.flows.iter_mut().map(|(_, f)| &mut f.seen);
        for seen in flows.chain(memory.affinity.iter_mut().map(|(_, a)| &mut a.seen)) {
            match seen.checked_sub(time) {
                Some(earlier) => *seen = earlier,
                None => return Ok(false),
            }
        }
        self.0.set_flow_memory(&memory)?;
        Ok(true)
    }
}
