//! Code that only tests use: a store, a cloud and a log in memory, and the simulation that runs the whole
//! server with them. The store and the cloud behave as the real store and the real cloud are
//! documented to do. They run in virtual time, and a test can make them fail.

pub(crate) mod cloud;
pub(crate) mod log;
pub(crate) mod postgres;
mod simulation;
pub(crate) mod store;
