//! Tests of the orders of the console: an operator changes devices at IoT Platform, and sees what is
//! not carried out yet.
#![cfg(feature = "simulation")]

use std::net::SocketAddr;

use crate::support::{
    Process, Site,
    console::{TOKEN, VIEWER_TOKEN, Visitor, admin, free_address},
    http::{self, Answer, FORM},
    http_get, stdout, until,
};

/// Returns a site with a console, whose cloud is at `endpoint`.
fn site(endpoint: &str, manage: bool, listen: SocketAddr) -> Site {
    Site::with(&format!(
        "[iot_platform]\nendpoint = \"http://{endpoint}\"\nregion = \"cn-shanghai\"\nmanage = {manage}\n{}",
        admin(listen, "")
    ))
}

/// Imports `count` devices that have a certificate.
fn import(site: &Site, count: u32) {
    let mut csv = String::from("deviceId,enrollment,deviceName,deviceSecret\n");
    (1..=count)
        .for_each(|number| csv.push_str(&format!("SN-{number:03},lamp,SN-{number:03},{number:032}\n")));
    site.import(&csv);
}

/// Places an order as the pages offer it.
fn order(visitor: &Visitor, kind: &str, device: &str) -> Answer {
    let page = visitor.get(&format!("/device/order?id={device}&action={kind}"));
    assert_eq!(page.status, 200, "{}", page.body);
    visitor.post("/device/order", &[("id", device), ("action", kind), ("seen", &page.field("seen"))])
}

fn script(address: SocketAddr, token: &str, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Accept", "application/json"), FORM];
    http::send(address, method, path, &headers, &http::form(fields))
}

fn calls(simulator: &Process, action: &str) -> u64 {
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    stats["calls"][action].as_u64().unwrap_or(0)
}

#[test]
fn an_operator_rotates_disables_enables_and_deletes_at_the_cloud() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let listen = free_address();
    let site = site(&simulator.address.to_string(), true, listen);
    site.import("deviceId,enrollment\nSN-001,lamp\nSN-002,lamp\nNEW-1,lamp\n");
    let export = || stdout(&site.run(&["export"]));
    let line =
        |device: &str| export().lines().find(|line| line.starts_with(device)).unwrap_or_default().to_owned();
    site.write("two.csv", "deviceId\nSN-001\nSN-002\n");
    assert!(site.run(&["register"]).status.success());
    let server = site.serve();
    let (lead, guest) = (Visitor::new(listen, "lead"), Visitor::new(listen, "guest"));

    let page = lead.get("/device?id=SN-001").body;
    for kind in ["disable", "delete", "rotate"] {
        assert!(page.contains(&format!("name=\"action\" value=\"{kind}\"")), "{kind}: {page}");
    }
    assert!(!page.contains("Enable everywhere"), "it is enabled: {page}");
    assert!(!guest.get("/device?id=SN-001").body.contains("/device/order"), "a viewer only sees");
    assert_eq!(guest.get("/device/order?id=SN-001&action=rotate").status, 403);
    let fields = [("id", "SN-001"), ("action", "rotate")];
    for path in ["/device/order", "/device/cancel"] {
        assert_eq!(guest.post(path, &fields).status, 403, "{path}");
        assert_eq!(lead.post_as_is(path, &fields).status, 403, "without the token: {path}");
    }
    assert_eq!(lead.post("/device/order", &fields).status, 409, "without what the page has shown");
    assert_eq!(calls(&simulator, "DeleteDevice"), 0);

    let before = line("SN-001");
    let placed = order(&lead, "rotate", "SN-001");
    assert_eq!(placed.header("location"), "/device?id=SN%2D001&done=order", "{}", placed.body);
    until("the secret is another one", || {
        let after = line("SN-001");
        after != before && after.split(',').nth(4).is_some_and(|secret| !secret.is_empty())
    });
    assert_eq!(calls(&simulator, "DeleteDevice"), 1);

    assert_eq!(order(&lead, "disable", "SN-002").status, 303);
    until("it is disabled there", || lead.get("/device?id=SN-002").body.contains("value=\"enable\""));
    until("the order has ended", || stdout(&site.run(&["device", "orders"])).is_empty());
    assert_eq!(order(&lead, "enable", "SN-002").status, 303);
    until("it is enabled", || {
        stdout(&site.run(&["device", "show", "SN-002"])).contains("gets its certificate")
    });
    assert_eq!(order(&lead, "delete", "SN-002").status, 303);
    until("it is gone", || line("SN-002").is_empty());
    assert_eq!(calls(&simulator, "DeleteDevice"), 2);
    let log = stdout(&site.run(&["audit", "export"]));
    assert!(log.contains("\"ordered\"") && log.contains("console:lead"), "{log}");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn an_order_that_waits_is_shown_with_its_reason_and_cancelled() {
    let listen = free_address();
    let site = site("127.0.0.1:9", true, listen);
    import(&site, 2);
    let server = site.serve();
    let lead = Visitor::new(listen, "lead");
    assert_eq!(order(&lead, "rotate", "SN-001").status, 303);
    until("the failure is noted", || lead.get("/device?id=SN-001").body.contains("Last failure: "));
    let page = lead.get("/device?id=SN-001").body;
    assert!(page.contains("Rotate the secret") && page.contains("not carried out yet"), "{page}");
    assert!(page.contains("NoConnection") && !page.contains("name=\"action\" value=\"rotate\""), "{page}");
    let list = lead.get("/orders").body;
    assert!(list.contains("SN-001") && list.contains("NoConnection") && !list.contains("SN-002"), "{list}");
    let json = script(listen, VIEWER_TOKEN, "GET", "/orders", &[]);
    let json: serde_json::Value = serde_json::from_str(&json.body).expect("JSON");
    assert_eq!((&json[0]["deviceId"], &json[0]["order"]), (&"SN-001".into(), &"rotate".into()));
    assert_eq!(
        stdout(&site.run(&["device", "orders", "--json"])).trim(),
        json[0].to_string(),
        "the command line says the same"
    );
    let shown = script(listen, VIEWER_TOKEN, "GET", "/device?id=SN-001", &[]).body;
    assert!(shown.contains("\"order\":\"rotate since "), "{shown}");

    // Another order is refused, and so is a plain deletion, with the words of the command line.
    let other = script(listen, TOKEN, "POST", "/device/order", &[("id", "SN-001"), ("action", "disable")]);
    assert_eq!(other.status, 409);
    assert!(other.body.contains("SN-001: has another order, to rotate"), "{}", other.body);
    let deleted = lead.change("delete", "SN-001");
    assert_eq!(deleted.status, 409, "{}", deleted.body);
    assert!(deleted.body.contains("Nothing was changed") && deleted.body.contains("has an order, to rotate"));

    let number = json[0]["number"].to_string();
    let cancel = |number: &str| lead.post("/device/cancel", &[("id", "SN-001"), ("order", number)]);
    assert_eq!(cancel("4711").status, 409, "another order than the page has shown");
    assert_eq!(cancel(&number).header("location"), "/device?id=SN%2D001&done=cancel");
    assert_eq!(cancel(&number).status, 409, "it has ended");
    assert!(lead.get("/orders").body.contains("None."));
    assert_eq!(stdout(&site.run(&["device", "orders"])), "");
    let log = stdout(&site.run(&["audit", "export", "--device", "SN-001"]));
    assert!(log.contains("rotate: cancelled by the operator") && log.contains("console:lead"), "{log}");

    let bad = script(listen, TOKEN, "POST", "/device/order", &[("id", "SN-001"), ("action", "odd")]);
    assert_eq!(bad.status, 400);
    let none = script(listen, TOKEN, "POST", "/device/cancel", &[("id", "SN-001")]);
    assert_eq!((none.status, none.body.as_str()), (409, "SN-001 has no such order\n"));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn without_the_rights_the_page_says_how_to_get_them() {
    let listen = free_address();
    let site = site("127.0.0.1:9", false, listen);
    import(&site, 1);
    let server = site.serve();
    let lead = Visitor::new(listen, "lead");
    let page = lead.get("/device?id=SN-001").body;
    assert!(page.contains("set manage = true for its target") && !page.contains("/device/order"), "{page}");
    let refused = script(listen, TOKEN, "POST", "/device/order", &[("id", "SN-001"), ("action", "rotate")]);
    assert_eq!(refused.status, 409);
    assert_eq!(refused.body, "SN-001: manage = true is not set for its target default\n");
    assert_eq!(stdout(&site.run(&["device", "orders"])), "");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn the_list_of_orders_comes_in_pages_and_by_target() {
    let listen = free_address();
    let targets = "[[target]]\nname = \"default\"\nendpoint = \"http://127.0.0.1:9\"\nregion = \"r\"\n\
                   [[target]]\nname = \"tokyo\"\nendpoint = \"http://127.0.0.1:9\"\nregion = \"r\"\n";
    let site = Site::with(&format!("{targets}{}", admin(listen, "")));
    import(&site, 60);
    let table = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
    let sql = "INSERT INTO cloud_order (deviceId, work, productKey, deviceName, orderedAt, who, target) \
               SELECT deviceId, 'rotate', productKey, deviceName, 1, 'a', iif(deviceId = 'SN-060', 'tokyo', 'default') \
               FROM device_table ORDER BY deviceId";
    assert_eq!(table.execute(sql, ()).expect("added"), 60);
    let server = site.serve();
    let guest = Visitor::new(listen, "guest");
    let rows = |page: &str| page.matches("<th scope=\"row\">").count();
    let first = guest.get("/orders").body;
    assert_eq!(rows(&first), 50);
    let next =
        first.split("href=\"/orders?").nth(1).expect("a next page").split('"').next().expect("an address");
    let last = guest.get(&format!("/orders?{next}")).body;
    assert!(rows(&last) == 10 && last.contains("SN-060") && !last.contains("rel=\"next\""), "{last}");
    assert!(last.contains("href=\"/orders\""), "the way back: {last}");
    let tokyo = guest.get("/orders?target=tokyo").body;
    assert!(rows(&tokyo) == 1 && tokyo.contains("SN-060"), "{tokyo}");
    assert_eq!(stdout(&site.run(&["device", "orders", "--target", "tokyo"])).lines().count(), 1);
    assert_eq!(server.stop(), Some(0));
}
