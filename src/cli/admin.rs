//! `certdist admin`: makes the hashes and tokens that the `[admin]` section needs.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, anyhow};

use super::{CommandResult, Failure, print, remark};
use crate::{
    admin::access,
    device::Secret,
    password::{self, MAX_PASSWORD},
};

/// Hashes passwords and makes tokens for the console
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist admin hash-password        # asks for it, or reads a line from standard input
and in certdist.toml
  [[admin.user]]
  name          = \"lead\"
  password_hash = \"$argon2id$…\"
  role          = \"operator\"          # or \"viewer\"")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Prints the argon2 hash of a password, for the `password_hash` of an [[admin.user]]
    HashPassword,
    /// Prints a new token for a script, and its hash for an [[admin.token]]
    NewToken,
}

pub(super) fn run(args: &Args) -> CommandResult {
    match args.action {
        Action::HashPassword => {
            let password = read_password()?;
            let hash = password::hash(&password).map_err(|reason| Failure::Usage(anyhow!(reason)))?;
            print(|out| writeln!(out, "{hash}"))?;
        }
        Action::NewToken => {
            let (token, hash) = access::new_token()?;
            remark("The token is shown only once. Put its hash into the configuration.\n");
            print(|out| writeln!(out, "token {}\nhash  {hash}", token.expose()))?;
        }
    }
    Ok(())
}

/// Reads a line from standard input. On a terminal, the input is not shown.
fn read_password() -> Result<Secret, Failure> {
    let terminal = io::stdin().is_terminal();
    let _hidden = if terminal { Some(Hidden::begin()?) } else { None };
    if terminal {
        remark("Password: ");
    }
    let mut line = zeroize::Zeroizing::new(String::with_capacity(MAX_PASSWORD + 2));
    io::stdin().lock().read_line(&mut line).context("standard input")?;
    if terminal {
        remark("\n");
    }
    Ok(Secret::new(line.trim_end_matches(['\n', '\r']).to_owned()))
}

/// Guard that turns off the terminal's echo until it is dropped.
struct Hidden(rustix::termios::Termios);

impl Hidden {
    fn begin() -> Result<Self, Failure> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        // An error is ignored, because the terminal may have been closed.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
