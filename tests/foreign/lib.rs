//! This package has no code. It exists for its lock file; see Cargo.toml.
