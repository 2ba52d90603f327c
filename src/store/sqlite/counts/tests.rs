use super::*;

/// Generator of a repeatable sequence of numbers (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn one_of<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len() as u64) as usize]
    }
}

fn insert(connection: &Connection, from: u64, to: u64, enrollment: &str) {
    const SQL: &str = "WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) \
                       INSERT INTO device_table (deviceId, productKey, enrollment) \
                       SELECT printf('SN-%06d', i), 'a1', ?3 FROM n";
    connection.execute(SQL, params![from.cast_signed(), to.cast_signed(), enrollment]).unwrap();
}

/// Returns the differences between the numbers and the rows, as one text.
fn differences(connection: &Connection) -> String {
    let counts = Counts::of_rows(connection).unwrap().minus(&Counts::kept(connection).unwrap());
    let differences = TABLES.map(|table| format!("{:?}", (table.groups)(&counts)));
    differences.join(" ").replace("[]", "").trim().to_owned()
}

/// Returns a change that an operator could make by hand.
fn change(numbers: &mut Numbers) -> String {
    let id = format!("'SN-{}'", numbers.below(30));
    let enrollment = numbers.one_of(&["'lamps'", "'plugs'", "enrollment"]);
    let product = numbers.one_of(&["'a1'", "'a2'", "productKey"]);
    let secret = numbers.one_of(&["NULL", "'s3cret'", "'sealed 1 x'"]);
    let time = numbers.one_of(&["NULL", "5", "6"]);
    let refusal = if secret == "NULL" { numbers.one_of(&["NULL", "'odd'", "'even'"]) } else { "NULL" };
    let state = numbers.one_of(&["'enabled'", "'disabled'"]);
    let cloud = numbers.one_of(&["NULL", "'disabled'", "'deleted'"]);
    let [of, key] = [enrollment, product].map(|text| if text.starts_with('\'') { text } else { "'lamps'" });
    let insert = |or: &str| {
        format!(
            "INSERT {or} INTO device_table (deviceId, enrollment, productKey, deviceName, deviceSecret, firstIssued, \
             activateTime, refusal, state, cloudState) \
             VALUES ({id}, {of}, {key}, 'n', {secret}, {time}, {time}, {refusal}, {state}, {cloud})"
        )
    };
    match numbers.below(9) {
        0 => insert(""),
        1 => insert("OR IGNORE"),
        2 => {
            insert("") + " ON CONFLICT DO UPDATE SET enrollment = excluded.enrollment, state = excluded.state"
        }
        3 => format!("DELETE FROM device_table WHERE deviceId = {id}"),
        4 => format!(
            "UPDATE device_table SET enrollment = {enrollment}, productKey = {product} WHERE deviceId < {id}"
        ),
        5 => format!("UPDATE device_table SET firstIssued = {time}, state = {state} WHERE deviceId = {id}"),
        6 => format!(
            "UPDATE device_table SET deviceName = 'n', deviceSecret = {secret}, refusal = {refusal} WHERE deviceId >= {id}"
        ),
        7 => format!(
            "UPDATE OR REPLACE device_table SET cloudState = {cloud}, activateTime = {time}, refusal = NULL WHERE deviceId > {id}"
        ),
        _ => format!("UPDATE OR IGNORE device_table SET deviceId = 'SN-1' WHERE deviceId = {id}"),
    }
}

#[test]
fn the_numbers_follow_every_change_that_is_made_by_hand() {
    for seed in 1..=20 {
        let connection = connection::open_empty().unwrap();
        let mut numbers = Numbers(seed);
        for step in 0..200 {
            connection.execute_batch("SAVEPOINT change").unwrap();
            let sql = change(&mut numbers);
            // A change that a condition of the schema refuses changes no number either.
            let _ = connection.execute(&sql, ());
            let end =
                if numbers.below(5) == 0 { "ROLLBACK TO change; RELEASE change" } else { "RELEASE change" };
            connection.execute_batch(end).unwrap();
            assert_eq!(differences(&connection), "", "seed {seed}, step {step}: {sql}");
        }
        connection.execute("DELETE FROM device_table", ()).unwrap();
        let left: i64 = connection
            .query_row(
                "SELECT (SELECT count(*) FROM device_count) + (SELECT count(*) FROM refusal_count)",
                (),
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(left, 0, "seed {seed}: no empty group is left");
    }
}

#[test]
fn a_replaced_row_is_counted_if_its_delete_trigger_runs() {
    let connection = connection::open_empty().unwrap();
    insert(&connection, 1, 9, "lamps");
    let replace =
        "REPLACE INTO device_table (deviceId, productKey, enrollment) VALUES ('SN-000001', 'a1', 'plugs')";
    connection.pragma_update(None, "recursive_triggers", true).unwrap();
    connection.execute(replace, ()).unwrap();
    assert_eq!(differences(&connection), "");
    connection.pragma_update(None, "recursive_triggers", false).unwrap();
    connection.execute(replace, ()).unwrap();
    let [device, ..] = &check(&connection).unwrap().first[..] else { panic!("the check finds it") };
    assert_eq!((device.column, device.kept, device.counted), ("devices", 2, 1));
}

#[test]
fn an_upgrade_counts_the_devices_that_are_there() {
    let connection = connection::of_version(7);
    connection.execute("DELETE FROM device_table", ()).unwrap();
    insert(&connection, 1, 100, "lamps");
    insert(&connection, 101, 150, "plugs");
    connection
        .execute_batch(
            "UPDATE device_table SET refusal = 'odd' WHERE deviceId > 'SN-000090'; \
             UPDATE device_table SET deviceName = deviceId, deviceSecret = 's', firstIssued = 1 WHERE deviceId < 'SN-000050'; \
             UPDATE device_table SET deviceSecret = 'sealed 1 x', firstIssued = NULL, activateTime = 2 WHERE deviceId < 'SN-000020'; \
             UPDATE device_table SET state = 'disabled', cloudState = 'deleted' WHERE deviceId < 'SN-000005'; \
             UPDATE device_table SET cloudState = 'disabled' WHERE deviceId = 'SN-000007'",
        )
        .unwrap();
    connection.execute_batch(include_str!("../upgrade_7_to_8.sql")).unwrap();
    connection.execute_batch(include_str!("../upgrade_8_to_9.sql")).unwrap();
    connection.execute_batch(include_str!("../upgrade_9_to_10.sql")).unwrap();
    let check = check(&connection).unwrap();
    assert_eq!(check, CountCheck { devices: 150, ..CountCheck::default() });
    assert_eq!(count(&connection).unwrap(), 150);
}

#[test]
fn a_recount_corrects_numbers_and_triggers() {
    let connection = connection::open_empty().unwrap();
    insert(&connection, 1, 20, "lamps");
    connection
        .execute_batch(
            "UPDATE device_table SET refusal = 'odd' WHERE deviceId > 'SN-000010'; \
             UPDATE device_count SET issued = 7, devices = devices - 1; DELETE FROM refusal_count; \
             DROP TRIGGER device_count_insert; DROP TRIGGER device_count_update; \
             CREATE TRIGGER device_count_update AFTER UPDATE ON device_table BEGIN SELECT 1; END",
        )
        .unwrap();
    insert(&connection, 21, 30, "plugs");
    let found = check(&connection).unwrap();
    assert_eq!(found.triggers, ["device_count_insert", "device_count_update"]);
    // The differences are the devices and issued devices of `lamps`, the devices and unregistered
    // devices of `plugs`, and the refusals.
    assert_eq!((found.devices, found.different, found.first.len()), (30, 5, 5), "{found:?}");
    assert_eq!(recount(&connection).unwrap(), Some(found));
    assert_eq!(check(&connection).unwrap(), CountCheck { devices: 30, ..CountCheck::default() });
    connection.execute_batch("UPDATE device_table SET state = 'disabled'; DELETE FROM device_table WHERE deviceId < 'SN-000003'").unwrap();
    insert(&connection, 31, 40, "plugs");
    assert_eq!(differences(&connection), "");
}

#[test]
fn a_correction_keeps_what_others_change_meanwhile_and_is_made_once() {
    let connection = connection::open_empty().unwrap();
    insert(&connection, 1, 20, "lamps");
    connection.execute_batch("UPDATE device_count SET devices = 3, refused = 9").unwrap();
    let [one, other] = [(); 2].map(|()| compare(&connection).unwrap());
    insert(&connection, 21, 30, "lamps");
    connection.execute_batch("DELETE FROM device_table WHERE deviceId < 'SN-000006'").unwrap();
    assert!(correct(&connection, &one).unwrap());
    assert!(!correct(&connection, &other).unwrap(), "it would be added twice");
    assert_eq!(differences(&connection), "");
}

#[test]
fn a_number_below_zero_is_shown_as_zero() {
    let connection = connection::open_empty().unwrap();
    insert(&connection, 1, 5, "lamps");
    connection.execute_batch("UPDATE device_count SET issued = -4").unwrap();
    assert_eq!(totals(&connection).unwrap()[0].issued, 0);
}
