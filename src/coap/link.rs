//! Answer of `/.well-known/core` in CoRE Link Format (RFC 6690): all links, or the links that a
//! query selects.

use coap_lite::link_format::LinkFormatWrite;

/// One resource of the server.
#[derive(Debug, Clone, Copy)]
pub struct Link<'a> {
    /// Path of the resource, with the leading slash.
    pub target: &'a str,
    /// Names and values of the link's attributes, such as `("rt", "certdist.cert")`.
    pub attributes: &'a [(&'a str, &'a str)],
}

/// Returns the links that match all Uri-Query options `name=value` of a request (RFC 6690
/// §4.1), as `application/link-format`.
pub fn format(links: &[Link<'_>], queries: &[String]) -> String {
    let mut text = String::new();
    let mut write = LinkFormatWrite::new(&mut text);
    for link in links.iter().filter(|link| queries.iter().all(|query| matches(link, query))) {
        let mut attributes = write.link(link.target);
        for (name, value) in link.attributes {
            attributes = attributes.attr_quoted(name, value);
        }
        // Writing to a string cannot fail.
        let _ = attributes.finish();
    }
    text
}

fn matches(link: &Link<'_>, query: &str) -> bool {
    let Some((name, pattern)) = query.split_once('=') else { return false };
    if name == "href" {
        return fits(link.target, pattern);
    }
    let mut values = link.attributes.iter().filter(|(known, _)| *known == name).map(|(_, value)| *value);
    // RFC 6690 §4.1: these attributes hold several values separated by spaces.
    if matches!(name, "rt" | "if" | "rel" | "ct") {
        values.any(|value| value.split(' ').any(|value| fits(value, pattern)))
    } else {
        values.any(|value| fits(value, pattern))
    }
}

/// Returns whether a value matches a pattern. A pattern that ends in an asterisk matches
/// every value that begins with the text before the asterisk.
fn fits(value: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => value.starts_with(prefix),
        None => value == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: [Link<'_>; 3] = [
        Link { target: "/a", attributes: &[("rt", "one two"), ("title", "one two")] },
        Link { target: "/ab", attributes: &[("rt", "three"), ("if", "x")] },
        Link { target: "/c", attributes: &[("title", "say \"c\"")] },
    ];

    fn targets(query: &str) -> Vec<String> {
        let text = format(&LINKS, &[query.to_owned()]);
        text.split(',').filter_map(|link| Some(link.split_once('>')?.0[1..].to_owned())).collect()
    }

    #[test]
    fn without_a_query_all_links_are_returned() {
        let expected = r#"</a>;rt="one two";title="one two",</ab>;rt="three";if="x",</c>;title="say \"c\"""#;
        assert_eq!(format(&LINKS, &[]), expected);
    }

    #[test]
    fn each_kind_of_filter_finds_its_links() {
        for (query, expected) in [
            ("rt=two", &["/a"][..]),
            ("rt=one two", &[]),
            ("rt=t*", &["/a", "/ab"]),
            ("rt=*", &["/a", "/ab"]),
            ("title=one two", &["/a"]),
            ("title=two", &[]),
            ("href=/a", &["/a"]),
            ("href=/a*", &["/a", "/ab"]),
            ("if=*", &["/ab"]),
            ("sz=*", &[]),
            ("nonsense", &[]),
        ] {
            assert_eq!(targets(query), expected, "{query}");
        }
        let both = ["rt=t*".to_owned(), "if=x".to_owned()];
        assert_eq!(format(&LINKS, &both), r#"</ab>;rt="three";if="x""#);
    }
}
