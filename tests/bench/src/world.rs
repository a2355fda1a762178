//! One peer in its place: a child process in namespaces of its own that does what the bench tells it, a line at a time.
use crate::load::{self, Server, UdpClient};
use crate::net::{self, Cpu, within};
use crate::objects::{self, UDP_ENDPOINTS};
use crate::peer::{Measure, Peer};
use crate::skep::{Cold, Skep, Views};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use tests_kube_proxy::{Api, KubeProxy, Mode, Setup, path};

/// What a world is.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long, value_enum)]
    pub peer: Peer,
    #[arg(long)]
    pub services: u32,
    /// How often to program everything from nothing, where that is ours to repeat
    #[arg(long, default_value_t = 1)]
    pub cold: u32,
    #[arg(long)]
    pub kube_proxy: PathBuf,
    /// Seconds that a first or later programming may take
    #[arg(long)]
    pub limit: u64,
    /// A cgroup2 folder that the bench removes afterwards
    #[arg(long)]
    pub cgroup: PathBuf,
}

/// What the bench asks for; the answer to each is one [`Reply`].
#[derive(Serialize, Deserialize, Debug)]
pub enum Command {
    /// One short repetition.
    Block(Measure, usize),
    /// One endpoint changed.
    Update,
    /// The endpoint of a connected UDP client dies.
    Stale,
    /// Memory of the one who programs.
    Memory,
}

/// Samples in the unit of what was measured.
#[derive(Serialize, Deserialize, Debug)]
pub enum Reply {
    Samples(Vec<f64>),
    Failed(String),
}

/// Which proxy programs this world.
enum Programmer {
    Nobody,
    Skep(Box<Skep>),
    KubeProxy(KubeProxy, Api),
}

struct World {
    args: Args,
    server: Server,
    pause: Child,
    programmer: Programmer,
    changes: u32,
    /// Which endpoint of the UDP service lives.
    udp: usize,
}

/// Builds the world, answers with the times of programming it, then serves commands until its input ends.
///
/// # Errors
/// The place cannot be made; everything later is told in replies.
pub fn run(args: Args) -> Result<()> {
    fs::create_dir_all(&args.cgroup)?;
    fs::write(args.cgroup.join("cgroup.procs"), std::process::id().to_string())?;
    let mut out = std::io::stdout().lock();
    let mut say = |reply: Result<Vec<f64>>| -> Result<()> {
        let reply = reply.map_or_else(|e| Reply::Failed(format!("{e:#}")), Reply::Samples);
        writeln!(out, "{}", serde_json::to_string(&reply)?)?;
        Ok(out.flush()?)
    };
    let built = World::build(args);
    let mut world = match built {
        Ok((world, cold)) => {
            say(Ok(cold))?;
            world
        }
        Err(e) => return say(Err(e)),
    };
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?)?;
        say(world.obey(command))?;
    }
    Ok(())
}

impl Drop for World {
    fn drop(&mut self) {
        self.programmer = Programmer::Nobody;
        let _ = self.pause.kill();
        let _ = self.pause.wait();
        // Empty once this process has gone back to where it came from.
        if let Some(parent) = self.args.cgroup.parent() {
            let _ = fs::write(parent.join("cgroup.procs"), std::process::id().to_string());
            let _ = fs::remove_dir(&self.args.cgroup);
        }
    }
}

impl World {
    fn build(args: Args) -> Result<(Self, Vec<f64>)> {
        net::build()?;
        let server = Server::start()?;
        let (programmer, cold) = program(&args)?;
        let world = Self {
            args,
            server,
            pause: net::pause()?,
            programmer,
            changes: 0,
            udp: 0,
        };
        world.check()?;
        Ok((world, cold))
    }

    fn is_direct(&self) -> bool {
        self.args.peer.is_to_pods()
    }

    /// Reaches the first, the middle and the last service, each at one of its own endpoints.
    fn check(&self) -> Result<()> {
        let services = self.args.services;
        let direct = self.is_direct();
        let work = move || {
            for i in [0, services / 2, services - 1] {
                let to = if direct {
                    objects::endpoint(i, 0)
                } else {
                    objects::vip(i)
                };
                let got = load::who(to)?;
                let own = [0, 1].map(|which| objects::endpoint(i, which));
                ensure!(own.contains(&got), "service {i} led to {got}");
            }
            Ok(())
        };
        self.client(work)
    }

    fn client<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        match within("client", Cpu::Client, work)?.join() {
            Ok(result) => result,
            Err(_) => bail!("the client panicked"),
        }
    }

    fn obey(&mut self, command: Command) -> Result<Vec<f64>> {
        match command {
            Command::Block(measure, size) => self.block(measure, size),
            Command::Update => self.update(),
            Command::Stale => self.stale(),
            Command::Memory => match &self.programmer {
                Programmer::KubeProxy(k, _) => Ok(vec![crate::memory::resident(k.id())?]),
                _ => bail!("measured in a process of its own"),
            },
        }
    }

    /// Targets of this peer, chosen among all services.
    fn targets(&self, count: usize) -> Vec<SocketAddrV4> {
        let direct = self.is_direct();
        (0..count)
            .map(|_| {
                let i = fastrand::u32(0..self.args.services);
                if direct {
                    objects::endpoint(i, fastrand::u32(0..2))
                } else {
                    objects::vip(i)
                }
            })
            .collect()
    }

    fn udp_target(&self) -> SocketAddrV4 {
        if self.is_direct() {
            SocketAddrV4::new(UDP_ENDPOINTS[self.udp], objects::UDP_PORT)
        } else {
            objects::udp_vip()
        }
    }

    fn block(&self, measure: Measure, size: usize) -> Result<Vec<f64>> {
        let time = Duration::from_millis(size as u64);
        match measure {
            Measure::Connect => {
                let to = self.targets(size);
                self.client(move || load::connects(&to))
            }
            Measure::Crr => {
                let to = self.targets(size);
                self.client(move || load::connect_request_response(&to))
            }
            Measure::Rr => {
                let to = self.targets(1)[0];
                self.client(move || load::request_response(to, size))
            }
            Measure::Stream => {
                let to = self.targets(1)[0];
                self.client(move || Ok(vec![load::stream(to, time)?]))
            }
            Measure::Udp => {
                let (to, counter) = (self.udp_target(), self.server.counter());
                self.client(move || Ok(vec![load::datagrams(&counter, to, time)?]))
            }
            _ => bail!("{measure:?} is not measured in blocks"),
        }
    }

    /// Milliseconds from the changed slice to the rules or maps; the result is looked at from a client.
    fn update(&mut self) -> Result<Vec<f64>> {
        self.changes += 1;
        let i = self.changes % self.args.services;
        let (new, other) = (objects::replacement(self.changes), objects::endpoint(i, 1));
        let endpoints = [*new.ip(), *other.ip()];
        self.rest();
        let took = self.change(|version| objects::slice(i, &endpoints, version))?;
        self.client(move || {
            for _ in 0..8 {
                let got = load::who(objects::vip(i))?;
                ensure!(got == new || got == other, "service {i} still leads to {got}");
            }
            Ok(())
        })?;
        Ok(vec![took.as_secs_f64() * 1e3])
    }

    /// Every change is measured from rest, so that none waits for what is left of another.
    fn rest(&self) {
        if let Programmer::KubeProxy(proxy, _) = &self.programmer {
            proxy.rest();
        }
    }

    /// Hands a changed slice to the one who programs; how long it took until it was done.
    fn change(&mut self, slice: impl FnOnce(u64) -> Value) -> Result<Duration> {
        match &mut self.programmer {
            Programmer::Nobody => bail!("nobody programs anything here"),
            Programmer::Skep(skep) => {
                let text = slice(u64::from(self.changes) + 1).to_string();
                skep.update(&text)
            }
            Programmer::KubeProxy(proxy, api) => {
                let object = slice(api.next_version());
                let start = Instant::now();
                api.put(path::SLICES, &object);
                Ok(proxy.next_sync(Duration::from_secs(self.args.limit))?.at - start)
            }
        }
    }

    /// Milliseconds from the death of a connected UDP client's endpoint to the first answer of its successor.
    fn stale(&mut self) -> Result<Vec<f64>> {
        self.changes += 1;
        let (old, new) = (self.udp, 1 - self.udp);
        self.server.all_live();
        self.rest();
        self.change(|version| objects::udp_slice(&[UDP_ENDPOINTS[old]], version))?;
        self.rest();
        let to = self.udp_target();
        let limit = Duration::from_secs(self.args.limit.max(10));
        let client = self.client(move || {
            let client = UdpClient::connect(to)?;
            client.until_answered_by(UDP_ENDPOINTS[old], limit)?;
            Ok(client)
        })?;
        self.changes += 1;
        self.server.only_lives(new);
        let start = Instant::now();
        let waiting = within("client", Cpu::Client, move || {
            client.until_answered_by(UDP_ENDPOINTS[new], limit)?;
            Ok(Instant::now())
        })?;
        self.change(|version| objects::udp_slice(&[UDP_ENDPOINTS[new]], version))?;
        let answered = match waiting.join() {
            Ok(result) => result?,
            Err(_) => bail!("the client panicked"),
        };
        self.udp = new;
        self.server.all_live();
        Ok(vec![(answered - start).as_secs_f64() * 1e3])
    }
}

/// Everything programmed from nothing, and how long that took: milliseconds, once or several times.
fn program(args: &Args) -> Result<(Programmer, Vec<f64>)> {
    match args.peer {
        Peer::Direct => Ok((Programmer::Nobody, Vec::new())),
        Peer::Skep | Peer::SkepPodAddress => program_skep(args, Some(args.cgroup.clone())),
        Peer::SkepPackets => program_skep(args, None),
        Peer::KubeProxyNftables => program_kube_proxy(args, Mode::Nftables),
        Peer::KubeProxyIptablesNft => program_kube_proxy(args, Mode::IptablesNft),
        Peer::KubeProxyIptablesLegacy => program_kube_proxy(args, Mode::IptablesLegacy),
    }
}

fn program_skep(args: &Args, cgroup: Option<PathBuf>) -> Result<(Programmer, Vec<f64>)> {
    let mut samples = Vec::new();
    let (mut skep, mut last) = (None, Cold::default());
    for _ in 0..args.cold.max(1) {
        drop(skep.take());
        let views = Views::of(args.services)?;
        let (one, cold) = Skep::cold(cgroup.clone(), views)?;
        last = cold;
        samples.push((cold.plan + cold.write).as_secs_f64() * 1e3);
        skep = Some(one);
    }
    let skep = skep.context("programmed at least once")?;
    eprintln!(
        "    the last of {}: loaded in {:.1?}, planned in {:.1?}, written in {:.1?}",
        samples.len(),
        last.open,
        last.plan,
        last.write
    );
    skep.attach()?;
    Ok((Programmer::Skep(Box::new(skep)), samples))
}

fn program_kube_proxy(args: &Args, mode: Mode) -> Result<(Programmer, Vec<f64>)> {
    if !Path::new(&args.kube_proxy).is_file() {
        bail!(
            "{} is not built: `cargo xtask peers kube-proxy`",
            args.kube_proxy.display()
        );
    }
    let services = args.services;
    let api = Api::serve(|path| objects::of_cluster(path, services))?;
    let setup = Setup {
        node: objects::NODE,
        pods: objects::cidr(objects::POD_RANGE),
        pause: None,
    };
    let proxy = KubeProxy::start(&args.kube_proxy, mode, &setup)?;
    let first = proxy.next_sync(Duration::from_secs(args.limit))?;
    // By its own account, without its start and its lists: as Skep's is taken.
    Ok((
        Programmer::KubeProxy(proxy, api),
        vec![first.took.as_secs_f64() * 1e3],
    ))
}
