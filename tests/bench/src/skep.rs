//! Skep's planner and data path, as a peer: in the bench's own process, as the agent holds them.
use crate::net::DEVICES;
use crate::objects::{self, NODE, SERVICE_RANGE};
use agent_datapath::{Datapath, DatapathConfig};
use agent_services::{Existing, Node, Planner, ServiceView, SliceView};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PINS: &str = "/run/bpf/node";

/// A loaded data path with its planner.
pub struct Skep {
    datapath: Datapath,
    planner: Planner,
}

/// What the planner is told at first.
pub struct Views {
    services: Vec<ServiceView>,
    slices: Vec<SliceView>,
}

impl Views {
    /// Those of a cluster with this many services.
    ///
    /// # Errors
    /// An object could not be read.
    pub fn of(services: u32) -> Result<Self> {
        let mut views = Self {
            services: vec![service(objects::udp_service())?],
            slices: vec![slice(objects::udp_slice(&objects::UDP_ENDPOINTS, 1))?],
        };
        for i in 0..services {
            views.services.push(service(objects::service(i))?);
            views.slices.push(slice(objects::first_slice(i))?);
        }
        Ok(views)
    }
}

fn service(object: Value) -> Result<ServiceView> {
    ServiceView::of(&serde_json::from_value::<Service>(object)?).context("the service has no name")
}

fn slice(object: Value) -> Result<SliceView> {
    SliceView::of(&serde_json::from_value::<EndpointSlice>(object)?).context("the slice is of no service")
}

fn config(cgroup: Option<PathBuf>) -> DatapathConfig {
    DatapathConfig {
        pin_dir: PINS.into(),
        cgroup,
        service_ranges: vec![(IpAddr::V4(SERVICE_RANGE.0), SERVICE_RANGE.1)],
        sizes: None,
    }
}

fn planner() -> Planner {
    let node = Node {
        name: NODE.into(),
        ..Node::default()
    };
    Planner::new(node, Existing::default())
}

/// How long the steps of a full programming took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cold {
    /// Programs loaded, maps made, hooks attached.
    pub open: Duration,
    /// Everything observed and planned.
    pub plan: Duration,
    /// Everything written.
    pub write: Duration,
}

impl Skep {
    /// Loads and programs everything from nothing; what an earlier one left is taken away first.
    ///
    /// # Errors
    /// The kernel refused something.
    pub fn cold(cgroup: Option<PathBuf>, views: Views) -> Result<(Self, Cold)> {
        Datapath::remove(Path::new(PINS))?;
        let start = Instant::now();
        let datapath = Datapath::open(&config(cgroup))?;
        let open = start.elapsed();
        let mut planner = planner();
        let start = Instant::now();
        views.services.into_iter().for_each(|s| planner.service(s));
        views.slices.into_iter().for_each(|s| planner.slice(s));
        let changes = planner.plan();
        let plan = start.elapsed();
        let start = Instant::now();
        datapath.apply(&changes)?;
        let write = start.elapsed();
        Ok((Self { datapath, planner }, Cold { open, plan, write }))
    }

    /// Serves the pods' devices.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn attach(&self) -> Result<()> {
        for device in DEVICES {
            self.datapath.attach_pod_device(device)?;
        }
        Ok(())
    }

    /// From the text of a changed slice, as it arrives from the API, to the maps.
    ///
    /// # Errors
    /// The text is no slice, or the kernel refused the change.
    pub fn update(&mut self, text: &str) -> Result<Duration> {
        let start = Instant::now();
        let object: EndpointSlice = serde_json::from_str(text)?;
        self.planner
            .slice(SliceView::of(&object).context("the slice is of no service")?);
        self.datapath.apply(&self.planner.plan())?;
        Ok(start.elapsed())
    }
}

/// Plans a cluster from nothing, without any map, and prints how long the steps took and what memory they left.
///
/// # Errors
/// An object could not be read.
pub fn plan(services: u32, repeat: u32) -> Result<()> {
    let memory = || crate::memory::resident(std::process::id());
    for _ in 0..repeat {
        let before = memory()?;
        let views = Views::of(services)?;
        let viewed = memory()?;
        let mut planner = planner();
        let start = Instant::now();
        views.services.into_iter().for_each(|s| planner.service(s));
        views.slices.into_iter().for_each(|s| planner.slice(s));
        let observed = start.elapsed();
        let told = memory()?;
        let start = Instant::now();
        let changes = planner.plan();
        let planned = start.elapsed();
        println!(
            "{services} services: observed in {observed:.1?}, planned in {planned:.1?}, {} entries; {before:.1} MiB at first, {viewed:.1} \
             with the views, {told:.1} with the planner told, {:.1} with the changes",
            changes.entries(),
            memory()?
        );
        drop(changes);
        println!("  {:.1} MiB without them", memory()?);
    }
    Ok(())
}
