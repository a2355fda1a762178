//! What is taken along from layout 1.
//!
//! Connections that were translated per packet go on: their flows are copied. Sockets keep the service that they show as their
//! peer, and are found when their endpoint goes: the maps with these records are the same in both layouts, so they are taken over
//! as they are, and programs of both write to them. The counts of the old maps end with them.
use crate::dump::Pins;
use crate::error::DatapathError;
use crate::layout1::{Flow1, Layout1};
use crate::sys;
use crate::table::Table;
use datapath_abi::{
    Address, Be16, Flow, FlowKey, FrontendKey, FrontendValue, Proto, ReplyKey, ReplyValue, SetId,
    SocketRecord, maps,
};
use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

/// Pins the maps of layout 1 whose records are today's as ours, unless we have some already.
pub(crate) fn adopt_maps(pins: &Pins) -> Result<(), DatapathError> {
    let old = Layout1::folder(&pins.folder);
    let same = [
        (maps::SOCKETS, size_of::<u32>(), size_of::<SocketRecord>()),
        (maps::REPLIES, size_of::<ReplyKey>(), size_of::<ReplyValue>()),
    ];
    for (name, key, value) in same {
        let (from, to) = (old.join(name), pins.maps().join(name));
        if !from.exists() || to.exists() {
            continue;
        }
        let map = sys::open_pinned(&from).map_err(DatapathError::path(&from))?;
        let info = sys::map_info(map.as_fd()).map_err(DatapathError::path(&from))?;
        if (info.key_size as usize, info.value_size as usize) == (key, value) {
            sys::pin(map.as_fd(), &to).map_err(DatapathError::path(&to))?;
        }
    }
    Ok(())
}

/// Copies what is remembered of flows, in rounds: the first while the old programs are still at work, the last when none makes
/// flows any more.
pub(crate) struct Flows<'a> {
    old: PathBuf,
    frontends: &'a Table<FrontendKey, FrontendValue>,
    flows: &'a Table<FlowKey, Flow>,
    replies: &'a Table<ReplyKey, ReplyValue>,
    copied: HashSet<FlowKey>,
}

impl<'a> Flows<'a> {
    pub fn new(
        pins: &Pins,
        frontends: &'a Table<FrontendKey, FrontendValue>,
        flows: &'a Table<FlowKey, Flow>,
        replies: &'a Table<ReplyKey, ReplyValue>,
    ) -> Self {
        Self {
            old: Layout1::folder(&pins.folder),
            frontends,
            flows,
            replies,
            copied: HashSet::new(),
        }
    }

    /// Copies flows of layout 1, if there are any, that were not yet.
    pub fn copy(&mut self) -> Result<(), DatapathError> {
        if !self.old.join(maps::FLOWS).exists() {
            return Ok(());
        }
        let found = Table::<FlowKey, Flow1>::open(maps::FLOWS, &self.old)?.entries()?;
        let mut new = Vec::new();
        for (key, flow) in found {
            if self.copied.insert(key) && self.flows.get(&key)?.is_none() {
                let set = self.set(flow.front(&key), key.proto)?;
                new.push((key, flow.today(&key, set)));
            }
        }
        self.flows.write(&new)?;
        tracing::info!(flows = new.len(), "taken along from layout 1");
        Ok(())
    }

    /// Gives sockets the numbers that the sets of their fronts have now.
    pub fn number_sockets(&self) -> Result<(), DatapathError> {
        let mut changed = Vec::new();
        for (key, value) in self.replies.entries()? {
            let set = self.set((value.addr, value.port), Proto::UDP)?;
            if set != value.set {
                changed.push((key, ReplyValue { set, ..value }));
            }
        }
        self.replies.write(&changed)
    }

    /// The set of a front; 0, which is nobody's, for one that is gone.
    fn set(&self, (addr, port): (Address, Be16), proto: Proto) -> Result<SetId, DatapathError> {
        let front = self.frontends.get(&FrontendKey::new(addr, port, proto))?;
        Ok(front.map_or(SetId(0), |front| front.set))
    }
}
