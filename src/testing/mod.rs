//! Code that only tests use: a store and a cloud in memory, and the simulation that runs the whole
//! server with them. The store and the cloud behave as documented for the real ones, run in virtual
//! time, and can be made to fail.

pub(crate) mod cloud;
mod simulation;
pub(crate) mod store;
