//! The `certdist` command.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    certdist::cli::main()
}
