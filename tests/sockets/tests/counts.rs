//! What is counted for sockets: nothing is lost, whatever goes on at once.
use agent_datapath::{EndpointTrafficRow, Traffic};
use agent_services::ObjectName;
use anyhow::{Context, Result, ensure};
use datapath_abi::{Counts, Proto};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use tests_lab::{Lab, isolated};

const CLIENTS: u64 = 8;
const CONNECTIONS: u64 = 250;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address of the test")
}

fn listen(lab: &Lab, addr: &str) -> Result<SocketAddr> {
    let addr = at(addr);
    lab.address(&addr.ip().to_string())?;
    let listener = TcpListener::bind(addr)?;
    thread::spawn(move || listener.incoming().for_each(drop));
    Ok(addr)
}

fn of_service(traffic: &Traffic, owner: &str) -> Counts {
    let row = traffic.services.iter().find(|row| row.owner == owner);
    row.map(|row| row.counts).unwrap_or_default()
}

fn of_endpoint(traffic: &Traffic, endpoint: SocketAddr) -> u64 {
    let is_of = |row: &&EndpointTrafficRow| row.endpoint == endpoint;
    traffic
        .endpoints
        .iter()
        .find(is_of)
        .map_or(0, |row| row.counts.connections)
}

#[test]
fn connections_from_all_sides_at_once_are_counted_exactly() {
    isolated("connections_from_all_sides_at_once_are_counted_exactly", |lab| {
        let ends = [listen(lab, "10.244.0.2:8080")?, listen(lab, "10.244.0.3:8080")?];
        let vip = at("10.96.0.10:80");
        lab.serve("web", vip, Proto::TCP, &ends)?;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                thread::spawn(move || -> Result<[u64; 2]> {
                    let mut reached = [0, 0];
                    for _ in 0..CONNECTIONS {
                        let stream = TcpStream::connect(vip)?;
                        // The name shown is the service's; the endpoint is told by the address that the kernel chose to send from.
                        reached[usize::from(stream.local_addr()?.ip() == at("10.244.0.3:1").ip())] += 1;
                    }
                    Ok(reached)
                })
            })
            .collect();
        let mut reached = [0, 0];
        for client in clients {
            let one = client.join().ok().context("a client panicked")??;
            reached = [reached[0] + one[0], reached[1] + one[1]];
        }
        let traffic = lab.datapath.traffic()?;
        let web = of_service(&traffic, "default/web:p");
        ensure!(web.connections == CLIENTS * CONNECTIONS, "{web:?}");
        let counted = ends.map(|end| of_endpoint(&traffic, end));
        ensure!(counted == reached, "counted {counted:?}, reached {reached:?}");
        Ok(())
    });
}

#[test]
fn refusals_are_counted_for_the_service_that_has_no_endpoint() {
    isolated(
        "refusals_are_counted_for_the_service_that_has_no_endpoint",
        |lab| {
            let vip = at("10.96.0.10:80");
            lab.serve("empty", vip, Proto::TCP, &[])?;
            for _ in 0..3 {
                let error = TcpStream::connect(vip).err().context("nobody serves")?;
                ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
            }
            let empty = of_service(&lab.datapath.traffic()?, "default/empty:p");
            ensure!(
                (empty.refusals, empty.connections, empty.drops) == (3, 0, 0),
                "{empty:?}"
            );
            Ok(())
        },
    );
}

#[test]
fn counts_outlive_the_agent_and_end_with_their_service() {
    isolated("counts_outlive_the_agent_and_end_with_their_service", |lab| {
        let end = listen(lab, "10.244.0.2:8080")?;
        let vip = at("10.96.0.10:80");
        lab.serve("web", vip, Proto::TCP, &[end])?;
        TcpStream::connect(vip)?;
        lab.restart()?;
        lab.serve("web", vip, Proto::TCP, &[end])?;
        TcpStream::connect(vip)?;
        let traffic = lab.datapath.traffic()?;
        ensure!(
            of_service(&traffic, "default/web:p").connections == 2,
            "{traffic:?}"
        );
        ensure!(of_endpoint(&traffic, end) == 2, "{traffic:?}");
        lab.planner.service_gone(&ObjectName::new("default", "web"));
        lab.program()?;
        // Gets the numbers of the one that is gone.
        lab.serve("next", at("10.96.0.11:80"), Proto::TCP, &[end])?;
        TcpStream::connect(at("10.96.0.11:80"))?;
        let traffic = lab.datapath.traffic()?;
        ensure!(
            of_service(&traffic, "default/next:p").connections == 1,
            "{traffic:?}"
        );
        ensure!(of_endpoint(&traffic, end) == 1, "{traffic:?}");
        Ok(())
    });
}
