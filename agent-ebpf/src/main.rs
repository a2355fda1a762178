//! The programs in the kernel: thin entries over `datapath-logic`, one per hook, each with one exit that counts.
#![no_std]
#![feature(asm_experimental_arch)]
#![no_main]

mod counts;
mod flows;
mod maps;
mod own;
mod packet;
mod run;
mod socket;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never reached: no program has a panicking operation, or the linker would have kept its message and the verifier
    // refused the loop.
    loop {}
}

/// The sources are under Apache-2.0 or GPL-2.0-only, at the user's choice; the object is offered to the kernel under the latter,
/// which is what helpers marked GPL-only ask for.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
