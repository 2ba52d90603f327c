//! Test doubles: a store and a cloud in memory. Both behave as documented for the real ones, run
//! in virtual time, and can be made to fail.

pub(crate) mod cloud;
pub(crate) mod store;
