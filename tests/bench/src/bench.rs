//! The run: which peers at which numbers of services, in which order.
use crate::packets;
use crate::peer::{Measure, Peer};
use crate::place::{self, Place, Setup};
use crate::report;
use crate::stats::{self, Row, Runs};
use crate::world::Command;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The main ratios, within five minutes
    #[arg(long)]
    pub quick: bool,
    /// Write the rows to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Only these; all if none is named
    #[arg(long, value_enum)]
    pub measure: Vec<Measure>,
    /// Only these peers (and direct)
    #[arg(long, value_enum)]
    pub peer: Vec<Peer>,
    /// Only these numbers of services
    #[arg(long)]
    pub services: Vec<u32>,
    /// The real kube-proxy
    #[arg(long, default_value = "target/peers/kube-proxy")]
    pub kube_proxy: PathBuf,
    /// Skep itself
    #[arg(long, default_value = "target/release/skep")]
    pub skep: PathBuf,
    /// What was built, for the report
    #[arg(long, default_value = "unknown")]
    pub commit: String,
    /// Where table and plots go; none are written without it
    #[arg(long)]
    pub report: Option<PathBuf>,
}

impl Args {
    fn wants(&self, measure: Measure) -> bool {
        self.measure.is_empty() || self.measure.contains(&measure)
    }

    fn wants_peers(&self) -> bool {
        self.measure.is_empty() || self.measure.iter().any(|m| m.is_of_peers())
    }

    /// Whether a measure in blocks is taken at this number of services: what goes on after the first packet does not depend on
    /// it.
    fn wants_blocks(&self, measure: Measure, services: u32) -> bool {
        let of_first_packet = matches!(measure, Measure::Connect | Measure::Crr);
        self.wants(measure) && measure.in_blocks() && (of_first_packet || !self.quick || services <= 1_000)
    }

    fn counts(&self) -> Vec<u32> {
        if self.services.is_empty() {
            vec![1, 1_000, 10_000, 50_000]
        } else {
            self.services.clone()
        }
    }

    /// Why a peer is left out at this count, if it is.
    fn left_out(&self, peer: Peer, services: u32) -> Option<&'static str> {
        let slow = match peer {
            Peer::Direct | Peer::Skep => false,
            Peer::KubeProxyIptablesLegacy => services > 10_000,
            Peer::SkepPackets | Peer::SkepPodAddress => services > 10_000,
            Peer::KubeProxyNftables | Peer::KubeProxyIptablesNft => services > 1_000,
        };
        (self.quick && slow).then_some("not in a quick run, which has to end in five minutes")
    }

    fn is_wanted(&self, peer: Peer) -> bool {
        self.peer.is_empty() || peer == Peer::Direct || self.peer.contains(&peer)
    }

    /// Repetitions of short blocks.
    fn turns(&self) -> usize {
        if self.quick { 20 } else { 40 }
    }

    /// How often something is programmed from nothing.
    fn cold(&self, peer: Peer, services: u32) -> u32 {
        match (peer.is_kube_proxy(), services) {
            // Each loads its programs anew, which takes the verifier a second.
            (false, _) if self.quick => 5,
            (false, _) => 20,
            (true, 0..=1_000) if !self.quick => 5,
            (true, _) => 1,
        }
    }

    /// How often one endpoint changes.
    fn changes(&self, peer: Peer, services: u32) -> usize {
        match (peer.is_kube_proxy(), services) {
            (false, _) => 100,
            (true, _) if self.quick => 5,
            (true, 0..=10_000) => 20,
            (true, _) => 5,
        }
    }

    /// How often an endpoint dies.
    fn deaths(&self, peer: Peer, services: u32) -> usize {
        match (peer.is_kube_proxy(), services) {
            (true, 0..=1_000) if self.quick => 3,
            (true, 1_001..) if self.quick => 1,
            (true, 1_001..) => 3,
            _ => 20,
        }
    }
}

/// Seconds that a programming may take.
fn limit(services: u32) -> u64 {
    match services {
        0..=1_000 => 60,
        1_001..=10_000 => 600,
        _ => 1_200,
    }
}

/// Runs everything and reports it.
///
/// # Errors
/// The machine cannot run it at all, or a result cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    let counts = if args.wants_peers() {
        args.counts()
    } else {
        Vec::new()
    };
    for services in counts {
        let mut stage = Stage::start(args, services);
        stage.blocks();
        stage.one_by_one(Measure::Update, Args::changes, &Command::Update);
        stage.one_by_one(Measure::StaleUdp, Args::deaths, &Command::Stale);
        stage.memory();
        rows.extend(stage.rows);
    }
    rows.extend(published(args));
    rows.extend(per_packet(args));
    if rows.iter().all(|r| r.p50.is_none()) {
        print!("{}", report::table(&rows));
        bail!("nothing could be measured");
    }
    report::finish(args, &rows)
}

/// The first line of a reason, without what a verifier has to say.
fn shortened(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    line.chars().take(160).collect()
}

/// The programs alone.
fn per_packet(args: &Args) -> Vec<Row> {
    if !args.wants(Measure::NsPerPacket) || !args.is_wanted(Peer::SkepPackets) {
        return Vec::new();
    }
    eprintln!("==> {}", Measure::NsPerPacket.name());
    packets::rows().unwrap_or_else(|e| {
        let reason = shortened(&format!("failed: {e:#}"));
        vec![stats::skipped(
            Measure::NsPerPacket,
            Peer::SkepPackets,
            1,
            &reason,
        )]
    })
}

/// Memory at the number of services at which others have published theirs.
fn published(args: &Args) -> Option<Row> {
    const SERVICES: u32 = 30_000;
    if !args.wants(Measure::AgentRss) || !args.services.is_empty() || !args.is_wanted(Peer::Skep) {
        return None;
    }
    let row = match place::memory(&args.skep, SERVICES) {
        Ok((process, _)) => stats::row(
            Measure::AgentRss,
            Peer::Skep,
            SERVICES,
            &vec![vec![process]],
            None,
        ),
        Err(e) => stats::skipped(Measure::AgentRss, Peer::Skep, SERVICES, &format!("failed: {e:#}")),
    };
    Some(row)
}

/// All peers at one number of services.
struct Stage<'a> {
    args: &'a Args,
    services: u32,
    places: BTreeMap<Peer, Place>,
    rows: Vec<Row>,
}

impl<'a> Stage<'a> {
    fn start(args: &'a Args, services: u32) -> Self {
        let mut stage = Self {
            args,
            services,
            places: BTreeMap::new(),
            rows: Vec::new(),
        };
        for peer in Peer::ALL.into_iter().filter(|p| args.is_wanted(*p)) {
            let started = match args.left_out(peer, services) {
                Some(reason) => Err(anyhow::anyhow!(reason)),
                None => stage.start_peer(peer),
            };
            if let Err(reason) = started {
                stage.skip_all(peer, &format!("{reason:#}"));
            }
        }
        stage
    }

    fn start_peer(&mut self, peer: Peer) -> Result<()> {
        eprintln!("==> {} at {} services", peer.name(), self.services);
        let cold = self.args.cold(peer, self.services);
        // Skep repeats inside its world; kube-proxy is only cold in a new one.
        let worlds = if peer.is_kube_proxy() { cold } else { 1 };
        let cold = if peer.is_programmed() { cold } else { 1 };
        let mut runs = Runs::new();
        for _ in 0..worlds {
            self.places.remove(&peer);
            let (place, samples) = Place::start(&Setup {
                peer,
                services: self.services,
                cold,
                kube_proxy: Path::new(&self.args.kube_proxy),
                limit: limit(self.services),
            })?;
            runs.extend(samples.into_iter().map(|s| vec![s]));
            self.places.insert(peer, place);
        }
        if !runs.is_empty() && peer.is_programmed() {
            self.push(Measure::ProgramCold, peer, &runs, None);
        }
        Ok(())
    }

    fn push(&mut self, measure: Measure, peer: Peer, runs: &Runs, direct: Option<&Runs>) {
        if self.args.wants(measure) {
            self.rows
                .push(stats::row(measure, peer, self.services, runs, direct));
        }
    }

    fn skip(&mut self, measure: Measure, peer: Peer, reason: &str) {
        let reason = &shortened(reason);
        if self.args.wants(measure) {
            self.rows
                .push(stats::skipped(measure, peer, self.services, reason));
        }
    }

    fn skip_all(&mut self, peer: Peer, reason: &str) {
        eprintln!("    skipped: {}", shortened(reason));
        for measure in Measure::ALL.into_iter().filter(|m| m.is_of_peers()) {
            self.skip(measure, peer, reason);
        }
    }

    /// Short blocks of all peers in turns, each turn begun by another peer.
    fn blocks(&mut self) {
        let wanted = |m: &Measure| self.args.wants_blocks(*m, self.services);
        for measure in Measure::ALL.into_iter().filter(wanted).collect::<Vec<_>>() {
            eprintln!("==> {} at {} services", measure.name(), self.services);
            let mut all: BTreeMap<Peer, Runs> = BTreeMap::new();
            let mut failed: BTreeMap<Peer, String> = BTreeMap::new();
            // The first turn warms up and does not count.
            for turn in 0..=self.args.turns() {
                let mut order: Vec<Peer> = self.places.keys().copied().collect();
                let len = order.len().max(1);
                order.rotate_left(turn % len);
                for peer in order {
                    match self.block(peer, measure) {
                        Ok(samples) if turn > 0 => all.entry(peer).or_default().push(samples),
                        Ok(_) => {}
                        Err(e) => {
                            failed.entry(peer).or_insert_with(|| format!("{e:#}"));
                        }
                    }
                }
            }
            let direct = all.get(&Peer::Direct).cloned();
            for (peer, reason) in &failed {
                // A repetition that failed is a result of its own: no figure hides it.
                all.remove(peer);
                self.skip(measure, *peer, &format!("failed: {reason}"));
            }
            for (peer, runs) in &all {
                self.push(measure, *peer, runs, direct.as_ref());
            }
        }
    }

    fn block(&mut self, peer: Peer, measure: Measure) -> Result<Vec<f64>> {
        let place = self.places.get_mut(&peer).context("the peer runs")?;
        place.ask(&Command::Block(measure, measure.block()))
    }

    /// What takes its time: one peer after the other.
    fn one_by_one(&mut self, measure: Measure, times: fn(&Args, Peer, u32) -> usize, command: &Command) {
        if !self.args.wants(measure) {
            return;
        }
        let peers: Vec<Peer> = self.places.keys().copied().collect();
        for peer in peers {
            let counts = match measure {
                Measure::Update => peer.is_programmed(),
                _ => peer.is_through_services(),
            };
            if !counts {
                continue;
            }
            eprintln!(
                "==> {}: {} at {} services",
                measure.name(),
                peer.name(),
                self.services
            );
            let mut runs = Runs::new();
            let result = (0..times(self.args, peer, self.services)).try_for_each(|_| {
                let place = self.places.get_mut(&peer).context("the peer runs")?;
                runs.push(place.ask(command)?);
                Ok::<_, anyhow::Error>(())
            });
            match result {
                Ok(()) => self.push(measure, peer, &runs, None),
                Err(e) => self.skip(measure, peer, &format!("failed: {e:#}")),
            }
        }
    }

    fn memory(&mut self) {
        if !self.args.wants(Measure::AgentRss) {
            return;
        }
        let peers: Vec<Peer> = self.places.keys().copied().collect();
        for peer in peers {
            let measured = match peer {
                p if !p.is_programmed() => continue,
                Peer::Skep => place::memory(&self.args.skep, self.services).map(|(process, maps)| {
                    eprintln!(
                        "    maps of {} services: {maps:.1} MiB beside the process",
                        self.services
                    );
                    vec![process]
                }),
                _ => match self.places.get_mut(&peer) {
                    Some(place) => place.ask(&Command::Memory),
                    None => continue,
                },
            };
            match measured {
                Ok(samples) => self.push(Measure::AgentRss, peer, &vec![samples], None),
                Err(e) => self.skip(Measure::AgentRss, peer, &format!("failed: {e:#}")),
            }
        }
    }
}
