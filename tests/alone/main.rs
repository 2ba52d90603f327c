//! The tests that have the machine to themselves: loads and killed servers, root's
//! namespaces, a browser.

mod abuse;
mod addresses;
mod browser;
mod crash;
mod incidents;
mod memory;
mod newcomer;
mod package;
#[path = "../support/mod.rs"]
mod support;
