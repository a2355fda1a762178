#![no_std]
//! Map keys and values, globals, drop reasons and layout version shared by kernel and user space (no_std).
