#![no_std]
//! Parse, look up, choose, rewrite: the packet logic, without std and without unsafe.
