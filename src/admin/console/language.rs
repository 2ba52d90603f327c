//! Language of the console, and the catalogue of its sentences. The catalogue has one file for each
//! language in `texts/`, in the format of Project Fluent. Performs no I/O.

use std::sync::LazyLock;

use fluent_bundle::{FluentArgs, FluentResource, FluentValue, concurrent::FluentBundle};
use maud::{Markup, PreEscaped, Render, html};
use unic_langid::LanguageIdentifier;

use super::grouped;

/// A language in which the console is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    English,
    Chinese,
    Japanese,
}

impl Language {
    /// All languages, in the order in which the pages offer them.
    pub(super) const ALL: [Self; 3] = [Self::English, Self::Chinese, Self::Japanese];

    /// Returns the language tag (RFC 5646), as in the attribute `lang`.
    pub(super) fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh-CN",
            Self::Japanese => "ja",
        }
    }

    /// Returns the name of the language in the language itself.
    pub(super) fn own_name(self) -> &'static str {
        match self {
            Self::English => "English",
            Self::Chinese => "简体中文",
            Self::Japanese => "日本語",
        }
    }

    /// Returns the language with exactly this tag.
    pub(super) fn tagged(tag: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|language| language.tag() == tag)
    }

    /// Returns the most preferred language of an `Accept-Language` header (RFC 9110 §12.5.4), or
    /// English if the console has none of the header's languages. All variants of Chinese select
    /// simplified Chinese.
    pub(super) fn accepted(header: &str) -> Self {
        let mut best = (0.0, Self::English);
        for range in header.split(',').take(MAX_RANGES) {
            let (tag, parameters) = range.split_once(';').unwrap_or((range, ""));
            let primary = tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase();
            let language = match primary.as_str() {
                "en" => Self::English,
                "zh" => Self::Chinese,
                "ja" => Self::Japanese,
                _ => continue,
            };
            let weight = match parameters.trim().strip_prefix("q=") {
                Some(weight) => weight.trim().parse::<f32>().unwrap_or(0.0),
                None => 1.0,
            };
            if weight > best.0 {
                best = (weight, language);
            }
        }
        best.1
    }

    fn source(self) -> &'static str {
        match self {
            Self::English => include_str!("texts/en.ftl"),
            Self::Chinese => include_str!("texts/zh-CN.ftl"),
            Self::Japanese => include_str!("texts/ja.ftl"),
        }
    }
}

/// Maximum number of language ranges of a header that are considered.
const MAX_RANGES: usize = 16;

type Bundle = FluentBundle<FluentResource>;

static BUNDLES: LazyLock<[Bundle; 3]> = LazyLock::new(|| Language::ALL.map(bundle));

fn bundle(language: Language) -> Bundle {
    let id: LanguageIdentifier = language.tag().parse().unwrap_or_default();
    let mut bundle = Bundle::new_concurrent(vec![id]);
    // Fluent need not isolate values, because the markup isolates those that may contain foreign
    // text (`bdi`).
    bundle.set_use_isolating(false);
    bundle.set_formatter(Some(|value, _| match value {
        FluentValue::Number(number) if number.value >= 0.0 => Some(grouped(number.value as u64)),
        _ => None,
    }));
    // A sentence that cannot be parsed is left out here. A test ensures that all sentences can be
    // parsed.
    let resource =
        FluentResource::try_new(language.source().to_owned()).unwrap_or_else(|(partial, _)| partial);
    bundle.add_resource_overriding(resource);
    bundle
}

/// Value that is inserted into a sentence of the catalogue.
pub(super) enum Value<'a> {
    /// A number, which is shown with commas between its thousands.
    Number(u64),
    /// Text, which is escaped.
    Text(&'a str),
    /// Markup, such as a link.
    Markup(Markup),
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl From<Markup> for Value<'_> {
    fn from(markup: Markup) -> Self {
        Self::Markup(markup)
    }
}

/// First of the characters that stand for markup while a sentence is formatted. They are in a
/// private use area of Unicode, and are removed from all other text.
const FIRST_SLOT: u32 = 0xE000;
/// Maximum number of markup values in a sentence.
const MAX_SLOTS: u32 = 16;

fn is_slot(c: char) -> bool {
    (FIRST_SLOT..FIRST_SLOT + MAX_SLOTS).contains(&u32::from(c))
}

/// The sentences of the console in one language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Texts(pub(super) Language);

impl Texts {
    /// Returns the sentence with this catalogue key. The sentence must take no values. Returns the
    /// catalogue key itself if the catalogue has no such sentence.
    pub(super) fn say(self, key: &'static str) -> String {
        self.with(key, [])
    }

    /// Returns the sentence with this catalogue key as plain text, with its values filled in. A
    /// value that is markup is left out.
    pub(super) fn with<'a, const N: usize>(
        self,
        key: &'static str,
        values: [(&'static str, Value<'a>); N],
    ) -> String {
        let mut args = FluentArgs::with_capacity(N);
        for (name, value) in values {
            match value {
                Value::Number(number) => args.set(name, number as f64),
                Value::Text(text) => args.set(name, text),
                Value::Markup(_) => {}
            }
        }
        self.format(key, &args)
    }

    /// Returns the sentence with this catalogue key, with its values filled in. A value may be
    /// markup.
    pub(super) fn rich<'a, const N: usize>(
        self,
        key: &'static str,
        values: [(&'static str, Value<'a>); N],
    ) -> Markup {
        let mut args = FluentArgs::with_capacity(N);
        let mut slots = Vec::with_capacity(N);
        for (name, value) in values {
            let slot = char::from_u32(FIRST_SLOT + slots.len() as u32).unwrap_or_default();
            match value {
                Value::Number(number) => args.set(name, number as f64),
                Value::Text(text) => {
                    let text: String = text.chars().filter(|c| !is_slot(*c)).collect();
                    slots.push(html! { bdi { (text) } });
                    args.set(name, slot.to_string());
                }
                Value::Markup(markup) => {
                    slots.push(markup);
                    args.set(name, slot.to_string());
                }
            }
        }
        let sentence = self.format(key, &args);
        let mut out = String::with_capacity(sentence.len() + 64);
        for part in sentence.split_inclusive(is_slot) {
            let text = part.trim_end_matches(is_slot);
            text.render_to(&mut out);
            let slot = part[text.len()..].chars().next();
            if let Some(markup) = slot.and_then(|slot| slots.get((u32::from(slot) - FIRST_SLOT) as usize)) {
                out.push_str(&markup.0);
            }
        }
        PreEscaped(out)
    }

    fn format(self, key: &str, args: &FluentArgs<'_>) -> String {
        // The variants of the enum are in the order of `ALL`, which is also the order of the
        // bundles.
        let bundle = &BUNDLES[self.0 as usize];
        let Some(pattern) = bundle.get_message(key).and_then(|message| message.value()) else {
            return key.to_owned();
        };
        bundle.format_pattern(pattern, Some(args), &mut Vec::new()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        fs,
        path::Path,
    };

    use fluent_bundle::FluentError;
    use proptest::prelude::*;

    use super::*;

    /// Returns each catalogue key, with the names of the values that its sentence takes.
    fn keys(source: &str) -> BTreeMap<String, BTreeSet<String>> {
        let mut keys = BTreeMap::new();
        let mut last = String::new();
        for line in source.lines().filter(|line| !line.starts_with('#')) {
            if let Some((key, _)) =
                line.split_once(" =").filter(|_| line.starts_with(|c: char| c.is_ascii_lowercase()))
            {
                assert!(keys.insert(key.to_owned(), BTreeSet::new()).is_none(), "{key} is there twice");
                last = key.to_owned();
            }
            for (at, _) in line.match_indices('$') {
                let name = line[at + 1..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-');
                keys.get_mut(&last).unwrap().insert(name.collect());
            }
        }
        keys
    }

    fn sources(folder: &Path, out: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, out);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("language.rs") {
                out.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn each_language_has_the_same_sentences_with_the_same_values() {
        let english = keys(Language::English.source());
        assert!(english.len() > 20);
        for language in Language::ALL {
            FluentResource::try_new(language.source().to_owned())
                .unwrap_or_else(|(_, errors)| panic!("{language:?}: {errors:?}"));
            let own = keys(language.source());
            let missing: Vec<_> = english.keys().filter(|key| !own.contains_key(*key)).collect();
            let surplus: Vec<_> = own.keys().filter(|key| !english.contains_key(*key)).collect();
            assert!(missing.is_empty() && surplus.is_empty(), "{language:?}: {missing:?} {surplus:?}");
            for (key, values) in &english {
                assert_eq!(&own[key], values, "{language:?}: {key}");
            }
        }
    }

    #[test]
    fn the_pages_use_each_sentence_of_the_catalogue_and_no_other() {
        let mut code = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin"), &mut code);
        let english = keys(Language::English.source());
        for key in english.keys() {
            assert!(code.contains(&format!("\"{key}\"")), "no page says {key}");
        }
        for call in [".say(\"", ".with(\"", ".rich(\""] {
            for (at, _) in code.match_indices(call) {
                let key: String = code[at + call.len()..].chars().take_while(|c| *c != '"').collect();
                assert!(english.contains_key(&key), "the catalogue has no sentence {key}");
            }
        }
    }

    #[test]
    fn each_sentence_can_be_said_with_its_values() {
        for language in Language::ALL {
            let bundle = &BUNDLES[language as usize];
            for (key, values) in keys(language.source()) {
                let mut args = FluentArgs::new();
                values.into_iter().for_each(|name| args.set(name, 2));
                let pattern = bundle.get_message(&key).unwrap().value().unwrap();
                let mut errors: Vec<FluentError> = Vec::new();
                let sentence = bundle.format_pattern(pattern, Some(&args), &mut errors);
                assert!(errors.is_empty() && !sentence.is_empty(), "{language:?}: {key}: {errors:?}");
            }
        }
    }

    #[test]
    fn a_browser_gets_its_most_preferred_language() {
        for (header, expected) in [
            ("ja", Language::Japanese),
            ("zh-TW,zh;q=0.9,en;q=0.8", Language::Chinese),
            ("de-DE, en;q=0.5, ja;q=0.7", Language::Japanese),
            ("en-GB,en;q=0.9,ja;q=0.8", Language::English),
            ("ja;q=0, zh;q=x, *", Language::English),
            ("", Language::English),
        ] {
            assert_eq!(Language::accepted(header), expected, "{header}");
        }
    }

    #[test]
    fn a_sentence_escapes_its_values_and_keeps_its_markup() {
        let texts = Texts(Language::English);
        let said = texts.rich("page-not-found", [("link", "<b>\u{E000}&".into())]).into_string();
        assert!(said.ends_with("<bdi>&lt;b&gt;&amp;</bdi>"), "{said}");
        let said = texts.rich("page-not-found", [("link", html! { a href="/" { "x" } }.into())]);
        assert!(said.into_string().contains("<a href=\"/\">x</a>"));
        let said = texts.with("sign-in-too-often", [("seconds", 1234.into())]);
        assert!(said.contains("1,234 s"), "{said}");
    }

    proptest! {
        #[test]
        fn no_value_can_become_markup(text in "\\PC*") {
            let said = Texts(Language::English).rich("page-not-found", [("link", (&text).into())]).into_string();
            let inner = said.split("<bdi>").nth(1).and_then(|rest| rest.split("</bdi>").next()).unwrap();
            prop_assert!(!inner.contains('<') && !inner.contains(is_slot));
        }

        #[test]
        fn any_header_gets_a_language(header in "\\PC*") {
            Language::accepted(&header);
        }
    }
}
