use super::*;
use std::net::IpAddr;

pub(crate) fn ip(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}
