//! Services as others on the nodes' network reach them: the router's namespace is the outside.

use crate::healing;
use crate::support::Cluster;
use agent_network::netns::NetNs;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// For something to come about that takes a moment by its nature.
const SOON: Duration = Duration::from_secs(20);

/// The network namespace of the router.
pub struct Outside(PathBuf);

impl Outside {
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let file = Path::new("/run/skep").join(&cluster.name).join("processes.json");
        let all: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        let pid = all["server"]["pid"].as_u64().context("the server's process")?;
        Ok(Self(PathBuf::from(format!("/proc/{pid}/ns/net"))))
    }

    /// The whole answer to a GET, from a new connection.
    pub fn get(&self, to: SocketAddr, within: Duration) -> Result<String> {
        self.get_path(to, "/", within)
    }

    /// The same of another path.
    pub fn get_path(&self, to: SocketAddr, what: &'static str, within: Duration) -> Result<String> {
        let path = self.0.clone();
        let ask = move || -> Result<String> {
            NetNs::open(&path)?.enter()?;
            let mut stream = TcpStream::connect_timeout(&to, within)?;
            stream.set_read_timeout(Some(within))?;
            let request = format!("GET {what} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        std::thread::spawn(ask)
            .join()
            .map_err(|_| anyhow!("the client panicked"))?
    }

    /// Asks over one connection until it is told to stop: who answered, and how often.
    fn lasting(&self, to: SocketAddr) -> Lasting {
        let path = self.0.clone();
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            NetNs::open(&path)?.enter()?;
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut last = String::new();
            let mut answers = 0;
            // Bounded, should nobody tell it to stop: some minutes.
            while answers < 20_000 && next(&stopped) {
                let pod = word(
                    &ask_again(&mut stream).with_context(|| format!("after {answers}"))?,
                    "pod=",
                )?;
                ensure!(last.is_empty() || last == pod, "{pod} answers where {last} did");
                last = pod;
                answers += 1;
            }
            Ok((last, answers))
        });
        Lasting { stop, thread }
    }

    pub fn run(&self, command: &[&str]) -> Result<()> {
        let mut nsenter = Command::new("nsenter");
        let status = nsenter
            .arg(format!("--net={}", self.0.display()))
            .args(command)
            .status()?;
        ensure!(status.success(), "{command:?} failed");
        Ok(())
    }
}

/// Between two requests of one connection: often enough for what a moment can break.
const PACE: Duration = Duration::from_millis(10);

/// A client that asks over one connection.
struct Lasting {
    stop: Sender<()>,
    thread: JoinHandle<Result<(String, u32)>>,
}

impl Lasting {
    /// Who answered, and how often.
    fn end(self) -> Result<(String, u32)> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}

/// Waits for the time of the next request; none comes once the other side is gone.
fn next(stopped: &Receiver<()>) -> bool {
    stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout)
}

/// One answer over a connection that stays.
fn ask_again(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 2048];
    loop {
        let n = stream.read(&mut part)?;
        ensure!(n > 0, "the connection ended");
        answer.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if body.len() >= length.context("an answer of known length")? {
            return Ok(text.into_owned());
        }
    }
}

/// Makes a service of the example's pods; waits for its addresses.
fn service(cluster: &Cluster, name: &str, spec: &str) -> Result<Vec<IpAddr>> {
    cluster.apply_example("hello.yaml")?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: hello}}, \
         ports: [{{port: 80, targetPort: 8080}}], {spec}}}}}"
    ))?;
    let ips = eventually(|| {
        let all = get(cluster, name, "{.status.loadBalancer.ingress[*].ip}")?;
        ensure!(spec.contains("NodePort") || !all.is_empty(), "no address yet");
        Ok(all)
    })?;
    ips.split_whitespace().map(|ip| Ok(ip.parse()?)).collect()
}

fn get(cluster: &Cluster, service: &str, path: &str) -> Result<String> {
    cluster.kubectl(&["get", "service", service, "-o", &format!("jsonpath={path}")])
}

/// Tries until it works, for a bounded time. Each try is a process or a connection: its pace is theirs.
pub fn eventually<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + SOON;
    loop {
        match work() {
            Err(_) if Instant::now() < end => {}
            other => return other,
        }
    }
}

/// The pods that answer so many requests, all of which have to be answered.
fn pods(outside: &Outside, to: SocketAddr, count: usize) -> Result<BTreeSet<String>> {
    eventually(|| outside.get(to, PATIENCE))?;
    (0..count)
        .map(|_| word(&outside.get(to, PATIENCE)?, "pod="))
        .collect()
}

fn word(answer: &str, name: &str) -> Result<String> {
    let found = answer.split_whitespace().find_map(|word| word.strip_prefix(name));
    found
        .map(str::to_owned)
        .with_context(|| format!("no {name} in: {answer}"))
}

fn node_addresses(cluster: &Cluster) -> Result<Vec<IpAddr>> {
    let path = "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}";
    let all = cluster.kubectl(&["get", "nodes", "-o", path])?;
    all.split_whitespace().map(|ip| Ok(ip.parse()?)).collect()
}

pub fn a_load_balancer_is_reached(cluster: &Cluster) -> Result<()> {
    let outside = Outside::of(cluster)?;
    let ips = service(
        cluster,
        "balanced",
        "type: LoadBalancer, ipFamilyPolicy: RequireDualStack",
    )?;
    ensure!(ips.len() == 2, "one address of each family, not {ips:?}");
    for ip in ips {
        let seen = pods(&outside, SocketAddr::new(ip, 80), 60)?;
        ensure!(seen.len() == 3, "sixty connections to {ip} reached {seen:?}");
    }
    Ok(())
}

pub fn node_ports_are_reached(cluster: &Cluster) -> Result<()> {
    let outside = Outside::of(cluster)?;
    service(
        cluster,
        "ported",
        "type: NodePort, ipFamilyPolicy: RequireDualStack",
    )?;
    let port: u16 = get(cluster, "ported", "{.spec.ports[0].nodePort}")?.parse()?;
    let addresses = node_addresses(cluster)?;
    ensure!(addresses.len() == 4, "two nodes, two families: {addresses:?}");
    cluster.client("port-client", &cluster.nodes()?[0], true)?;
    for ip in addresses {
        let to = SocketAddr::new(ip, port);
        let seen = pods(&outside, to, 60)?;
        ensure!(seen.len() == 3, "sixty connections to {to} reached {seen:?}");
        let said = cluster.ask("port-client", &[&format!("http://{to}"), "-n", "10"])?;
        ensure!(
            said.contains("10 answered, 0 failed"),
            "from a node to {to}: {said}"
        );
    }
    Ok(())
}

pub fn policy_local_keeps_the_client(cluster: &Cluster) -> Result<()> {
    let outside = Outside::of(cluster)?;
    let ips = service(
        cluster,
        "local",
        "type: LoadBalancer, externalTrafficPolicy: Local",
    )?;
    let to = SocketAddr::new(*ips.first().context("an address")?, 80);
    for _ in 0..10 {
        let client = word(&eventually(|| outside.get(to, PATIENCE))?, "client=")?;
        ensure!(client.starts_with("10.89.0.1:"), "the pod saw {client}");
    }
    let port: u16 = get(cluster, "local", "{.spec.healthCheckNodePort}")?.parse()?;
    let mut total = 0;
    for ip in node_addresses(cluster)?.into_iter().filter(IpAddr::is_ipv4) {
        let answer = eventually(|| outside.get(SocketAddr::new(ip, port), PATIENCE))?;
        let (_, body) = answer.split_once("\r\n\r\n").context("a body")?;
        let body: serde_json::Value = serde_json::from_str(body)?;
        let count = body["localEndpoints"].as_u64().context("a count")?;
        ensure!(
            answer.starts_with(if count > 0 { "HTTP/1.1 200" } else { "HTTP/1.1 503" }),
            "{answer}"
        );
        total += count;
    }
    ensure!(total == 3, "the nodes tell of {total} of three endpoints");
    Ok(())
}

pub fn a_client_with_affinity_stays(cluster: &Cluster) -> Result<()> {
    let outside = Outside::of(cluster)?;
    let ips = service(cluster, "sticky", "type: LoadBalancer, sessionAffinity: ClientIP")?;
    let to = SocketAddr::new(*ips.first().context("an address")?, 80);
    let seen = pods(&outside, to, 30)?;
    ensure!(
        seen.len() == 1,
        "thirty connections of one client reached {seen:?}"
    );
    Ok(())
}

/// From the loss of a node to the moment when the router knows who answers in its place.
const FAIL_OVER: Duration = Duration::from_secs(1);

/// The link of the node that answers is cut; another one steps in within a second, and gives the address back when the first is
/// heard again.
pub fn an_address_moves(cluster: &Cluster) -> Result<()> {
    let outside = Outside::of(cluster)?;
    let ips = service(cluster, "moving", "type: LoadBalancer")?;
    let to = SocketAddr::new(*ips.first().context("an address")?, 80);
    eventually(|| outside.get(to, PATIENCE))?;
    let number = owner(&outside, to.ip())?;
    let link = format!("skep-n{number}");
    outside.run(&["ip", "link", "set", &link, "down"])?;
    let begun = Instant::now();
    let moved = moves(&outside, to.ip(), |now| now != number).map(|()| begun.elapsed());
    // Some of the endpoints are beyond the cut until the API knows: what counts is that one answers.
    let answered = eventually(|| outside.get(to, Duration::from_millis(200)));
    outside.run(&["ip", "link", "set", &link, "up"])?;
    let healed = Instant::now();
    let moved = moved?;
    answered?;
    ensure!(moved < FAIL_OVER, "the address moved after {moved:?}");
    // Nobody asks for the address meanwhile: the one whose it is tells it.
    moves(&outside, to.ip(), |now| now == number)?;
    let back = healed.elapsed();
    ensure!(back < 3 * FAIL_OVER, "the address was back after {back:?}");
    println!("an address moved after {moved:?}, and was back after {back:?}");
    cluster.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"])?;
    eventually(|| outside.get(to, PATIENCE)).map(drop)
}

/// Until the router knows somebody as wanted who has the address.
fn moves(outside: &Outside, ip: IpAddr, wanted: impl Fn(u8) -> bool) -> Result<()> {
    eventually(|| {
        let now = owner(outside, ip)?;
        ensure!(wanted(now), "{ip} is at node {now}");
        Ok(())
    })
}

/// Connections from outside to the nodes' ports, some of which are sent on to the other node, go on while an agent is killed and
/// started again: none is reset, none lost, no new one refused.
pub fn outside_connections_go_on(cluster: &Cluster) -> Result<()> {
    let outside = Outside::of(cluster)?;
    service(cluster, "steady", "type: NodePort")?;
    let port: u16 = get(cluster, "steady", "{.spec.ports[0].nodePort}")?.parse()?;
    let nodes: Vec<IpAddr> = node_addresses(cluster)?
        .into_iter()
        .filter(IpAddr::is_ipv4)
        .collect();
    let fronts: Vec<_> = nodes.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    fronts
        .iter()
        .try_for_each(|to| eventually(|| outside.get(*to, PATIENCE)).map(drop))?;
    let clients = fronts.iter().cycle().take(LASTING);
    let lasting: Vec<_> = clients.map(|to| outside.lasting(*to)).collect();
    let outcome = fresh_ones_over_a_kill(cluster, &outside, &fronts);
    let mut pods = BTreeSet::new();
    for client in lasting {
        let (pod, answers) = client.end()?;
        ensure!(answers > 10, "only {answers} answers of {pod}");
        pods.insert(pod);
    }
    outcome?;
    ensure!(pods.len() > 1, "all of them reached {pods:?}");
    Ok(())
}

/// New connections to each front, from the moment when an agent is killed to that when the next one has written everything. All of
/// them have to be answered.
fn fresh_ones_over_a_kill(cluster: &Cluster, outside: &Outside, fronts: &[SocketAddr]) -> Result<()> {
    let before = healing::find_all(cluster, "agent")?;
    healing::kill(cluster, "agent")?;
    let end = Instant::now() + SOON;
    loop {
        for to in fronts {
            outside
                .get(*to, PATIENCE)
                .with_context(|| format!("a new connection to {to}"))?;
        }
        let now = healing::find_all(cluster, "agent")?;
        let healthy = |to: &SocketAddr| {
            let answer = outside.get_path(SocketAddr::new(to.ip(), HEALTH_PORT), "/healthz", PATIENCE);
            answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        };
        if now != before && now.len() == before.len() && fronts.iter().all(healthy) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the next agent does not come");
    }
}

/// Where agents tell that services are written, as kube-proxy does.
const HEALTH_PORT: u16 = 10256;
/// So many that endpoints of both nodes have some.
const LASTING: usize = 12;

/// The number of the node whose hardware address the router knows for the address; it ends with the node's number.
fn owner(outside: &Outside, ip: IpAddr) -> Result<u8> {
    let out = Command::new("nsenter")
        .arg(format!("--net={}", outside.0.display()))
        .args(["ip", "neigh", "show", &ip.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mac = text.split_whitespace().skip_while(|w| *w != "lladdr").nth(1);
    let Some(last) = mac.and_then(|mac| mac.rsplit(':').next()) else {
        bail!("the router does not know who has {ip}: {text}");
    };
    Ok(u8::from_str_radix(last, 16)?)
}
