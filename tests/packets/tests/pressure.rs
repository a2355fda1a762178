//! A small table of flows, filled by real packets through the loaded programs (root).
use agent_datapath::{Collected, Datapath, DatapathConfig, Sizes, since_boot};
use agent_services::{Existing, Planner};
use anyhow::{Result, ensure};
use datapath_abi::{Proto, programs};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tests_lab::{Lab, isolated, service, slice};
use tests_packets::{Frame, at, flag, node, settings};

const VIP: &str = "10.96.0.10:80";
const ENDPOINT: &str = "10.244.0.2:8080";
/// Entries of the table; pressure begins at three quarters.
const ROOM: u32 = 4096;
const PRESSED: usize = ROOM as usize / 4 * 3;

/// A data path beside the lab's, whose table of flows is small, with one service.
fn small(lab: &Lab) -> Result<Datapath> {
    let datapath = Datapath::open(&DatapathConfig {
        pin_dir: lab.config.pin_dir.with_file_name("small"),
        cgroup: None,
        sizes: Some(Sizes {
            flows: ROOM,
            ..Sizes::for_memory(1 << 28)
        }),
        ..lab.config.clone()
    })?;
    datapath.set_settings(&settings())?;
    let mut planner = Planner::new(node(), Existing::default());
    planner.service(service("web", at(VIP), Proto::TCP));
    planner.slice(slice("web", true, Proto::TCP, &[at(ENDPOINT)]));
    datapath.apply(&planner.plan())?;
    Ok(datapath)
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::new([10, 244, 0, 9].into(), port)
}

fn say(datapath: &Datapath, port: u16, flags: u8) -> Result<()> {
    let frame = Frame::new(Proto::TCP, flags, client(port), at(VIP)).bytes();
    datapath.try_packet(programs::FROM_POD, &frame).map(drop)?;
    Ok(())
}

fn answer(datapath: &Datapath, port: u16, flags: u8) -> Result<()> {
    let frame = Frame::new(Proto::TCP, flags, at(ENDPOINT), client(port)).bytes();
    datapath.try_packet(programs::TO_POD, &frame).map(drop)?;
    Ok(())
}

/// Opens connections from these ports, two entries each.
fn open(datapath: &Datapath, ports: impl Iterator<Item = u16>) -> Result<()> {
    for port in ports {
        say(datapath, port, flag::SYN)?;
        answer(datapath, port, flag::SYN | flag::ACK)?;
        say(datapath, port, flag::ACK)?;
    }
    Ok(())
}

/// The same, and closes them in this order.
fn open_and_close(datapath: &Datapath, ports: impl Iterator<Item = u16> + Clone) -> Result<()> {
    open(datapath, ports.clone())?;
    for port in ports {
        say(datapath, port, flag::RST)?;
    }
    Ok(())
}

/// The clients' ports of the flows that are remembered, in both directions.
fn remembered(datapath: &Datapath) -> Result<(BTreeSet<u16>, BTreeSet<u16>)> {
    let flows = datapath.dump()?.flows;
    let requests = flows.iter().filter(|f| !f.reply).map(|f| f.from.port());
    let replies = flows.iter().filter(|f| f.reply).map(|f| f.to.port());
    Ok((requests.collect(), replies.collect()))
}

#[test]
fn under_pressure_the_oldest_closed_connections_make_room_and_open_ones_stay() {
    let test = "under_pressure_the_oldest_closed_connections_make_room_and_open_ones_stay";
    isolated(test, |lab| {
        let datapath = small(lab)?;
        let (opened, closed) = (2000..3000_u16, 5000..5700_u16);
        open(&datapath, opened.clone())?;
        let found = datapath.collect(since_boot())?;
        ensure!(!found.is_pressed() && found.deleted == 0, "{found:?}");
        open_and_close(&datapath, closed.clone())?;
        let found = datapath.collect(since_boot())?;
        let filled = 2 * (opened.len() + closed.len());
        let expected = Collected {
            deleted: filled - PRESSED,
            pressed_out: filled - PRESSED,
            live: PRESSED,
            capacity: ROOM,
        };
        ensure!(found == expected, "{found:?}");
        ensure!(found.is_pressed() && found.pressure() <= 75.0);
        let stay = opened.chain(closed.skip((filled - PRESSED) / 2));
        let stay: BTreeSet<u16> = stay.collect();
        let (requests, replies) = remembered(&datapath)?;
        ensure!(
            requests == stay && replies == stay,
            "others than the oldest closed ones went"
        );
        Ok(())
    });
}

#[test]
fn a_table_of_open_connections_is_told_to_be_under_pressure_before_it_is_full() {
    let test = "a_table_of_open_connections_is_told_to_be_under_pressure_before_it_is_full";
    isolated(test, |lab| {
        let datapath = small(lab)?;
        open(&datapath, 2000..3700)?;
        let found = datapath.collect(since_boot())?;
        ensure!(found.deleted == 0 && found.live == 3400, "{found:?}");
        ensure!(found.is_pressed() && found.pressure() < 100.0 && found.room() == 0);
        let (requests, _) = remembered(&datapath)?;
        ensure!(requests == (2000..3700).collect());
        Ok(())
    });
}

#[test]
fn a_connection_that_is_used_again_after_it_was_looked_at_stays() {
    isolated(
        "a_connection_that_is_used_again_after_it_was_looked_at_stays",
        |lab| {
            let datapath = small(lab)?;
            open(&datapath, 2000..2010)?;
            open_and_close(&datapath, 5000..5010)?;
            // Ten minutes from now the closed ones are over.
            let found = datapath.survey(since_boot() + Duration::from_secs(600))?;
            ensure!(found.entries == 40);
            answer(&datapath, 5003, flag::ACK)?;
            let done = datapath.clear(&found)?;
            ensure!(
                (done.deleted, done.pressed_out, done.live) == (18, 0, 22),
                "{done:?}"
            );
            let (requests, replies) = remembered(&datapath)?;
            let stay: BTreeSet<u16> = (2000..2010).chain([5003]).collect();
            ensure!(requests == stay && replies == stay, "{requests:?} {replies:?}");
            Ok(())
        },
    );
}
