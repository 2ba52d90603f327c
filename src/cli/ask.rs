//! Asks before something is destroyed.

use std::io::{self, BufRead, IsTerminal};

use anyhow::anyhow;

use super::{Failure, remark};

/// Goes on if the operator says yes: with `yes` on the command line, or at the
/// terminal. Without a terminal nobody could say it.
pub(super) fn sure(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let what = "there is no terminal to ask at; --yes goes on without asking";
        return Err(Failure::Usage(anyhow!("{question} {what}")));
    }
    remark(&format!("{question} [y/N] "));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    match matches!(answer.trim(), "y" | "Y" | "yes") {
        true => Ok(()),
        false => Err(anyhow!("nothing was changed").into()),
    }
}
