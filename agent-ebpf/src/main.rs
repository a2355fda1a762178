//! The programs in the kernel: thin entries over `datapath-logic`, one per hook, each with one exit that counts.
#![no_std]
#![no_main]

mod maps;
mod packet;
mod socket;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never reached: no program has a panicking operation, or the linker would have kept its message and the verifier
    // refused the loop.
    loop {}
}

/// Both licences hold for the sources; helpers marked GPL-only ask for this text in the object.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
