//! Makes manual pages and shell completions from the description of the command line.

use std::{fs, io, path::PathBuf};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Arguments, CommandResult};

/// Example configuration. Its comments become the manual page certdist.toml(5).
const EXAMPLE: &str = include_str!("../../certdist.example.toml");

/// Writes the manual pages
#[derive(clap::Args)]
pub(super) struct Args {
    /// Folder for certdist.1, one page for each subcommand, and certdist.toml.5
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Prints the completions of a shell
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist completion bash > /usr/share/bash-completion/completions/certdist")]
pub(super) struct CompletionArgs {
    /// Shell
    shell: Shell,
}

pub(super) fn completion(args: &CompletionArgs) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "certdist", &mut script);
    Ok(super::print(|out| out.write_all(&script))?)
}

pub(super) fn run(args: &Args) -> CommandResult {
    let write = || -> io::Result<()> {
        fs::create_dir_all(&args.folder)?;
        clap_mangen::generate_to(Arguments::command(), &args.folder)?;
        fs::write(args.folder.join("certdist.toml.5"), configuration_page(EXAMPLE))
    };
    Ok(write().with_context(|| format!("could not write the manual pages to {}", args.folder.display()))?)
}

/// Returns the manual page certdist.toml(5). The page has each comment of the example
/// configuration, followed by the configuration key that the comment explains.
fn configuration_page(example: &str) -> String {
    let mut page = format!(
        ".TH certdist.toml 5 \"\" \"certdist {}\"\n.SH NAME\ncertdist.toml \\- configuration of certdist\n.SH DESCRIPTION\n",
        env!("CARGO_PKG_VERSION")
    );
    for line in example.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => page.push_str(&text(comment)),
            None if line.is_empty() => page.push_str(".PP\n"),
            None if line == "#" => page.push_str(".PP\n"),
            None => {
                let key = line.strip_prefix('#').unwrap_or(line);
                if key.starts_with('[') {
                    page.push_str(&format!(".PP\n.B {}\n.PP\n", escaped(key)));
                } else {
                    page.push_str(&format!(".RS 4\n.nf\n{}.fi\n.RE\n", text(key)));
                }
            }
        }
    }
    page.push_str(".SH SEE ALSO\ncertdist(1), certdist\\-check\\-config(1)\n");
    page
}

fn escaped(line: &str) -> String {
    line.replace('\\', "\\e").replace('-', "\\-")
}

/// Escapes a line so that roff treats it as text.
fn text(line: &str) -> String {
    let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
    format!("{guard}{}\n", escaped(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configurations_page_has_every_key() {
        let page = configuration_page(EXAMPLE);
        for (section, keys) in Config::keys() {
            assert!(page.contains(&format!("[{section}]")) || section.is_empty(), "{section}");
            for key in keys {
                let is_shown = |line: &str| {
                    line.starts_with(&format!("{key} = ")) || line.contains(&format!("[[{section}.{key}]]"))
                };
                assert!(page.lines().any(is_shown), "{key}");
            }
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
