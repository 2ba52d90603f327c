//! The devices of each target, and what keeps the devices of an enrollment or of a target from their
//! certificates.

use maud::{Markup, html};

use crate::{
    admin::{
        census::Census,
        console::{
            conditions::Conditions,
            grouped,
            language::Texts,
            page::{english, moment},
        },
    },
    obstacles::{Cloud, Obstacle, OfTarget, by_target},
    registrar::{Target, Targets},
    store::place::Places,
};

/// Maximum number of refusals shown for a target.
const REFUSALS: usize = 5;

/// Returns the state of the target of this name, for devices of a product.
pub(super) fn cloud(targets: &Targets, name: &str, product_key: &str) -> Cloud {
    let Some(target) = targets.named(name) else { return Cloud::NotConfigured(name.to_owned()) };
    match (&target.missing, target.registrar.stopped(product_key)) {
        (Some(reason), _) => Cloud::Missing(name.to_owned(), reason.clone()),
        (None, Some(reason)) => Cloud::Stopped(reason),
        (None, None) => Cloud::Called,
    }
}

/// Renders the obstacles of an enrollment. Leaves out those that the card of the enrollment shows
/// elsewhere.
pub(super) fn obstacles(t: Texts, obstacles: &[Obstacle]) -> Markup {
    let line = |obstacle: &Obstacle| {
        Some(match obstacle {
            Obstacle::NotConfigured => return None,
            Obstacle::NotOpen(opens) => t.rich("obstacle-not-open", [("time", moment(*opens).into())]),
            Obstacle::Closed(closed) => t.rich("obstacle-closed", [("time", moment(*closed).into())]),
            Obstacle::Full(max) => t.rich("obstacle-full", [("max", (*max).into())]),
            Obstacle::Taken { max, taken: Places { registered, claimed } } => {
                let counts = [("max", *max), ("registered", *registered), ("claimed", *claimed)];
                t.rich("obstacle-taken", counts.map(|(name, count)| (name, count.into())))
            }
            Obstacle::NoTarget(target) => t.rich("obstacle-no-target", [("target", target.into())]),
            Obstacle::NoCloud(target, reason) => {
                t.rich("obstacle-no-cloud", [("target", target.into()), ("reason", english(reason).into())])
            }
            Obstacle::Stopped(reason) => t.rich("obstacle-stopped", [("reason", english(reason).into())]),
        })
    };
    let lines: Vec<Markup> = obstacles.iter().filter_map(line).collect();
    html! {
        @if !lines.is_empty() {
            p.bad { (t.say("obstacles")) }
            ul { @for line in lines { li { (line) } } }
        }
    }
}

/// Renders the numbers of devices of each target, and the refusals of each target.
pub(super) fn section(t: Texts, targets: &Targets, census: &Census) -> Markup {
    let names = targets.all().iter().map(Target::name);
    let all = by_target(names, &census.targets, &targets.of_enrollments(), &census.totals, &census.waiting);
    html! {
        section.card aria-labelledby="targets" {
            h2 #targets { (t.say("targets-title")) }
            table.stacked {
                thead { tr {
                    th scope="col" { (t.say("column-target")) }
                    th scope="col" { (t.say("nav-enrollments")) }
                    th scope="col" { (t.say("nav-devices")) }
                    th scope="col" { (t.say("enrollments-registered")) }
                    th scope="col" { (t.say("enrollments-issued")) }
                    th scope="col" { (t.say("enrollments-activated")) }
                    th scope="col" { (t.say("column-to-admit")) }
                    th scope="col" { (t.say("column-refused")) }
                } }
                tbody { @for of in &all { (row(t, of)) } }
            }
            p.hint { (t.say("targets-text")) }
            @for of in &all {
                @let blocks = blocks(t, targets, of);
                @if !blocks.is_empty() {
                    p.bad { (t.rich("targets-blocked", [("target", (&of.name).into())])) }
                    ul { @for block in blocks { li { (block) } } }
                }
            }
        }
    }
}

fn row(t: Texts, of: &OfTarget) -> Markup {
    let all = Conditions { target: of.name.clone(), ..Conditions::default() };
    let totals = &of.totals;
    let cells = [
        ("nav-enrollments", of.enrollments),
        ("nav-devices", totals.devices),
        ("enrollments-registered", totals.registered),
        ("enrollments-issued", totals.issued),
        ("enrollments-activated", totals.activated),
        ("column-to-admit", of.waiting),
        ("column-refused", totals.refused),
    ];
    html! {
        tr {
            th scope="row" { a href=(all.path("/devices", &[], &[])) { bdi { (of.name) } } }
            @for (name, count) in cells { td data-label=(t.say(name)) { (grouped(count)) } }
        }
    }
}

/// Returns a description of each obstacle to the registrations at a target.
fn blocks(t: Texts, targets: &Targets, of: &OfTarget) -> Vec<Markup> {
    let Some(target) = targets.named(&of.name) else {
        return vec![html! { (t.say("targets-not-configured")) }];
    };
    if let Some(reason) = &target.missing {
        return vec![t.rich("targets-no-cloud", [("reason", english(reason).into())])];
    }
    let refusals = target.registrar.refusals();
    let block = |(product, reason): &(Option<String>, String)| match product {
        Some(product) => {
            let values = [("product", product.into()), ("reason", english(reason).into())];
            t.rich("targets-refuses-product", values)
        }
        None => t.rich("targets-refuses", [("reason", english(reason).into())]),
    };
    refusals.iter().take(REFUSALS).map(block).collect()
}
