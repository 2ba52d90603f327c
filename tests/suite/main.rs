//! Tests that need only Rust, and neither another program nor root. The tests run in parallel.

mod admin_port;
mod bounds;
mod cloud_batches;
mod cloud_changes;
mod cloud_config;
mod cloud_transport;
mod command_line;
mod company;
mod conformance;
mod console;
mod console_devices;
mod console_import;
mod console_orders;
mod console_sign_in;
mod demo;
mod everywhere;
mod exporting;
mod factory_files;
mod guards;
mod host;
mod importing;
mod instances;
mod iot_platform;
mod looking;
mod moves;
mod register;
mod restoring;
mod rolling;
mod sealing;
mod sign_in;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod targets;
mod torn_log;
mod two_keys;
