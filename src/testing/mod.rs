//! Doubles for tests: a store in memory and a cloud in memory. Both do what the real
//! ones promise, in virtual time, and can be made to fail.

pub(crate) mod cloud;
pub(crate) mod store;
