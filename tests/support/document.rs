//! Reads pages of the documentation, for tests that follow the instructions of a page. Finds the
//! code blocks of a page, and the commands and their output in console blocks.

/// Returns the code blocks of a page in order, each as its language and its text.
pub fn blocks(page: &str) -> Vec<(&str, &str)> {
    page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect()
}

/// Returns the texts of the blocks in one language.
pub fn blocks_of<'p>(page: &'p str, wanted: &str) -> Vec<&'p str> {
    let all = blocks(page).into_iter();
    all.filter_map(|(language, text)| (language == wanted).then_some(text)).collect()
}

/// A command that is typed in a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed<'p> {
    /// `#` for a command of root, `$` for a command of any user.
    pub prompt: char,
    pub command: &'p str,
    /// Lines that the command prints.
    pub shown: Vec<&'p str>,
}

/// Returns the commands in a console block.
pub fn typed(session: &str) -> Vec<Typed<'_>> {
    let mut all: Vec<Typed> = Vec::new();
    for line in session.lines() {
        match (line.split_once(' '), all.last_mut()) {
            (Some((prompt @ ("#" | "$"), command)), _) => {
                let prompt = if prompt == "#" { '#' } else { '$' };
                all.push(Typed { prompt, command, shown: Vec::new() });
            }
            (_, Some(last)) => last.shown.push(line),
            (_, None) => panic!("a console begins with a command: {line}"),
        }
    }
    all
}

/// Compares the output of a run with the output on a page. On the page, `…` stands for any lines,
/// or for the rest of a line. Returns pairs of values that may differ, such as secrets, hashes and
/// IDs: the page's value and the run's value. Times may also differ. Returns `None` if anything
/// else differs.
pub fn agree<'t>(shown: &[&'t str], said: &[&'t str]) -> Option<Vec<(&'t str, &'t str)>> {
    match shown {
        [] => said.is_empty().then(Vec::new),
        ["…", rest @ ..] => (0..=said.len()).find_map(|passed| agree(rest, &said[passed..])),
        [line, rest @ ..] => {
            let (first, others) = said.split_first()?;
            let mut values = line_agrees(line, first)?;
            values.extend(agree(rest, others)?);
            Some(values)
        }
    }
}

fn line_agrees<'t>(shown: &'t str, said: &'t str) -> Option<Vec<(&'t str, &'t str)>> {
    let is_between = |c: char| c.is_whitespace() || "\",{}".contains(c);
    let words = |line: &'t str| line.split(is_between).filter(|word| !word.is_empty()).collect::<Vec<_>>();
    let (shown, said) = (words(shown), words(said));
    let mut values = Vec::new();
    for (number, word) in shown.iter().enumerate() {
        if let Some(beginning) = word.strip_suffix('…') {
            return said.get(number).is_some_and(|said| said.starts_with(beginning)).then_some(values);
        }
        let said = said.get(number)?;
        let is_time = |word: &str| word.parse::<jiff::Timestamp>().is_ok();
        if is_value(word) && is_value(said) && word.len() == said.len() {
            values.push((*word, *said));
        } else if word != said && !(is_time(word) && is_time(said)) {
            return None;
        }
    }
    (shown.len() == said.len()).then_some(values)
}

/// Returns whether a word looks like a random value.
fn is_value(word: &str) -> bool {
    let is_hex = word.len() >= 8 && word.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    let is_long = word.len() >= 16 && word.chars().all(|c| c.is_ascii_alphanumeric() || c == ':');
    is_hex || is_long && word.contains(|c: char| c.is_ascii_digit())
}
