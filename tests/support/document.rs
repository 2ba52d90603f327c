//! What a page of the documentation shows: blocks, and in those of a console what is
//! typed and what it prints. For tests that do what a page says.

/// The blocks of a page in its order: language and text.
pub fn blocks(page: &str) -> Vec<(&str, &str)> {
    page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect()
}

/// Those of one language.
pub fn blocks_of<'p>(page: &'p str, wanted: &str) -> Vec<&'p str> {
    let all = blocks(page).into_iter();
    all.filter_map(|(language, text)| (language == wanted).then_some(text)).collect()
}

/// A line that is typed in a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed<'p> {
    /// `#` before what root types, `$` before what anybody may.
    pub prompt: char,
    pub command: &'p str,
    /// What it prints.
    pub shown: Vec<&'p str>,
}

/// What is typed in the block of a console.
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

/// Whether a run said what a page shows, where `…` stands for any lines, or for any
/// rest of one. Gives what differs all the same, as secrets, hashes and IDs do: the
/// page's and the run's. Times may differ as well.
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

/// Whether it looks as if it were random.
fn is_value(word: &str) -> bool {
    let is_hex = word.len() >= 8 && word.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    let is_long = word.len() >= 16 && word.chars().all(|c| c.is_ascii_alphanumeric() || c == ':');
    is_hex || is_long && word.contains(|c: char| c.is_ascii_digit())
}
