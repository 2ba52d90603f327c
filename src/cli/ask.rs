//! Asks for confirmation before data is destroyed.

use std::io::{self, BufRead, IsTerminal};

use anyhow::anyhow;

use super::{Failure, remark};

/// Succeeds if the operator confirms with `--yes` or at the terminal. Otherwise fails.
pub(super) fn sure(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let what = "There is no terminal for the answer; confirm with --yes";
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
