//! Code that only tests use: a store and a cloud in memory, and the simulation that runs the whole
//! server with them. The store and the cloud behave as the real store and the real cloud are
//! documented to do. They run in virtual time, and a test can make them fail.

pub(crate) mod cloud;
mod simulation;
pub(crate) mod store;
