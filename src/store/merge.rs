//! Rules of an import: how a row is merged into the table, and when a row contradicts the table.
//! The rules are the same for every store. This module performs no I/O, and does not know how a
//! store keeps its rows.

use super::{
    Conflict, DeviceRow, ImportRow, SameSecret, StoreError, key_use::WhichKey, roll::DeviceKeys,
    undo::KeyChange,
};
use crate::{
    device::{DeviceId, Secret},
    seal::Place,
    target,
};

/// Effect of one imported row on the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// The device was not in the table.
    Added,
    /// The device or its key has changed.
    Changed {
        /// Set if the device was in another enrollment.
        moves: bool,
        /// Set if the device has lost its former key.
        loses_key: bool,
    },
    /// The row matched the table already.
    Unchanged,
}

impl Merged {
    /// Returns the effect of a row on a device that was already in the table, from the changes that
    /// the row has made.
    pub fn of(moves: bool, device_changed: bool, key_change: KeyChange) -> Self {
        match device_changed || key_change != KeyChange::None {
            true => Self::Changed { moves, loses_key: key_change == KeyChange::Lost },
            false => Self::Unchanged,
        }
    }
}

/// Reason why a row was not merged. `F` is the error type of the store.
#[derive(Debug)]
pub enum Unmerged<F> {
    /// The row contradicts the table.
    Conflict(Conflict),
    /// The store failed, which ends the import.
    Failed(F),
}

impl<F> From<Conflict> for Unmerged<F> {
    fn from(conflict: Conflict) -> Self {
        Self::Conflict(conflict)
    }
}

/// Values of the columns that an import can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns<'r> {
    /// Name of the enrollment.
    pub enrollment: &'r str,
    /// Product in which the device is registered, or will be registered.
    pub product_key: &'r str,
    /// Device name, if it is set and not derived from the device ID.
    pub device_name: Option<&'r str>,
    /// Device secret, which completes the certificate.
    pub device_secret: Option<&'r Secret>,
    /// The cloud's own identifier for the device.
    pub iot_id: Option<&'r str>,
    /// Target of the device; see [`DeviceRow::target`].
    pub target: Option<&'r str>,
}

/// Returns the columns of a device that is not in the table yet.
pub fn new_device(row: &ImportRow) -> Columns<'_> {
    Columns {
        enrollment: &row.enrollment,
        product_key: row.product_key.as_ref().unwrap_or(&row.enrollment_product),
        device_name: row.device_name.as_deref(),
        device_secret: row.device_secret.as_ref(),
        iot_id: row.iot_id.as_deref(),
        target: row.target.as_deref().or(target_of_certificate(row)),
    }
}

/// Returns the enrollment's target if the row adds a certificate, for a row that names no target
/// itself. The target is stored with the certificate, so that a later change of the configuration
/// does not move the device.
fn target_of_certificate(row: &ImportRow) -> Option<&str> {
    row.enrollment_target.as_deref().filter(|_| row.device_secret.is_some())
}

/// A change of a device that is in the table. A store that makes the change also clears the cloud's
/// refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'r> {
    /// The columns after the change.
    pub columns: Columns<'r>,
    /// Set if the device's key must be deleted because it belongs to the former enrollment.
    pub drops_key: bool,
}

/// Merges a row into a device that is in the table; returns `None` if the row changes nothing. If
/// the device has a certificate, the columns on which the certificate or the device's key depends
/// must not change: a different value is a conflict. `same_secret` is the result of
/// [`has_same_secret`].
pub fn known_device<'r>(
    stored: &'r DeviceRow,
    row: &'r ImportRow,
    same_secret: bool,
) -> Result<Option<Change<'r>>, Conflict> {
    let moves = stored.enrollment != row.enrollment;
    let before = Columns {
        enrollment: &stored.enrollment,
        product_key: &stored.product_key,
        device_name: stored.device_name.as_deref(),
        device_secret: stored.certificate.as_ref().map(|certificate| &certificate.device_secret),
        iot_id: stored.iot_id.as_deref(),
        target: stored.target.as_deref(),
    };
    let after = Columns {
        enrollment: &row.enrollment,
        product_key: match &row.product_key {
            Some(product_key) => product_key,
            // If the product column is empty, the device keeps its product, unless it moves to
            // another enrollment.
            None if moves => &row.enrollment_product,
            None => before.product_key,
        },
        device_name: row.device_name.as_deref().or(before.device_name),
        device_secret: row.device_secret.as_ref().filter(|_| !same_secret).or(before.device_secret),
        iot_id: row.iot_id.as_deref().or(before.iot_id),
        target: match (row.target.as_deref(), &stored.certificate) {
            // The row names the target that already applies, so the stored value stays.
            (Some(target), Some(_)) if stored.target() == Some(target) => before.target,
            (Some(target), _) => Some(target),
            (None, Some(_)) => before.target,
            // A device that moves to another enrollment loses its target, so that the target of the
            // new enrollment applies.
            (None, None) => before.target.filter(|_| !moves).or(target_of_certificate(row)),
        },
    };
    if stored.certificate.is_some() {
        fits_certificate(&before, &after)?;
    }
    let change = Change { columns: after, drops_key: moves && !row.individual };
    Ok((after != before).then_some(change))
}

/// Returns whether the row has the secret that the device already has.
pub fn has_same_secret(
    stored: &DeviceRow,
    row: &ImportRow,
    same_secret: SameSecret<'_>,
) -> Result<bool, StoreError> {
    let stored = stored.certificate.as_ref().map(|certificate| &certificate.device_secret);
    match (stored, &row.device_secret) {
        (Some(stored), Some(other)) => same_secret(Place::DeviceSecret(row.device.as_str()), stored, other),
        _ => Ok(false),
    }
}

fn fits_certificate(before: &Columns<'_>, after: &Columns<'_>) -> Result<(), Conflict> {
    const HAS_ONE: &str = "the device already has a certificate";
    let differs = |column, how: String| Err(Conflict { column, reason: format!("{HAS_ONE}, {how}") });
    if after.enrollment != before.enrollment {
        return differs("enrollment", format!("in enrollment \"{}\"", before.enrollment));
    }
    if after.product_key != before.product_key {
        return differs("productKey", format!("of product \"{}\"", before.product_key));
    }
    if after.device_name != before.device_name {
        return differs("deviceName", "with another name".into());
    }
    if after.device_secret != before.device_secret {
        return differs("deviceSecret", "with another secret".into());
    }
    if before.iot_id.is_some() && after.iot_id != before.iot_id {
        return differs("iotId", "with another iotId".into());
    }
    if after.target != before.target {
        return differs("target", format!("at target \"{}\"", before.target.unwrap_or(target::DEFAULT)));
    }
    Ok(())
}

/// Checks a row without a key. A device of an individual enrollment must already have a key in
/// the table.
pub fn without_key(row: &ImportRow, has_key: bool) -> Result<(), Conflict> {
    if !row.individual || has_key {
        return Ok(());
    }
    let reason =
        format!("a device of the individual enrollment \"{}\" needs pskIdentity and psk", row.enrollment);
    Err(Conflict { column: "pskIdentity", reason })
}

/// Returns the change that a row makes to the keys of its device. `stored` are the present keys. If
/// they change, the device has the row's keys afterwards. The row's identity must not belong to another
/// device. The outer error is a failure of `same_secret`.
///
/// While a device has two keys, a row without a second key must have one of them. Otherwise, a list
/// that was made before the roll would remove a key, or restore a former key. No row removes the key
/// that the device has used last since it has had two keys, because the device may know no other key.
pub fn key_change(
    stored: Option<&DeviceKeys>,
    row: &ImportRow,
    same_secret: SameSecret<'_>,
) -> Result<Result<KeyChange, Conflict>, StoreError> {
    let Some((identity, psk)) = &row.key else {
        return Ok(without_key(row, stored.is_some()).map(|()| KeyChange::None));
    };
    let Some(stored) = stored else { return Ok(Ok(KeyChange::Added)) };
    // A stored key is sealed for its identity, so it cannot be compared under another identity.
    let has_identity = stored.identity == *identity;
    let place = Place::Psk { device: row.device.as_str(), identity };
    let is = |known: &Secret, other: &Secret| Ok(has_identity && same_secret(place, known, other)?);
    let keeps_key = is(&stored.psk, psk)?;
    let conflict = |column, reason: &str| Ok(Err(Conflict { column, reason: reason.to_owned() }));
    Ok(Ok(match (&stored.next, &row.next_key) {
        (None, None) | (Some(_), None) if keeps_key => KeyChange::None,
        (None, None) => KeyChange::Lost,
        (Some(next), None) if is(next, psk)? && stored.last_key() == Some(WhichKey::Current) => {
            let reason = "the device has used its former key last, and may be lost without it; to end its roll \
                          nevertheless, use `certdist device key --next-becomes-key --anyway`";
            return conflict("psk", reason);
        }
        (Some(next), None) if is(next, psk)? => KeyChange::Lost,
        (Some(_), None) => {
            let reason = "the device has two keys, and this is neither of them under their identity; end the roll \
                          first with `certdist device key`, or give both keys of the table";
            return conflict("psk", reason);
        }
        (None, Some(_)) if keeps_key => KeyChange::NextAdded,
        (Some(next), Some(other)) if keeps_key && is(next, other)? => KeyChange::None,
        (Some(_), Some(_)) if keeps_key && stored.last_key() == Some(WhichKey::Next) => {
            let reason = "the device has used its second key last, and may be lost without it; make it the key first, \
                          with `certdist device key --next-becomes-key`";
            return conflict("pskNext", reason);
        }
        (Some(_), Some(_)) if keeps_key => KeyChange::Lost,
        (_, Some(other)) if is(&stored.psk, other)? => {
            let reason = "this is the psk that the device has; if its roll has ended, leave the line out";
            return conflict("pskNext", reason);
        }
        (_, Some(_)) => {
            let reason = "the device has another key, or another pskIdentity; a line with a pskNext needs those that \
                          the device has";
            return conflict("psk", reason);
        }
    }))
}

/// Checks a row whose PSK identity belongs to the device `owner` in the table. Fails unless `owner`
/// is the row's device.
pub fn identity_of(owner: &str, row: &ImportRow) -> Result<(), Conflict> {
    if owner == row.device.as_str() {
        return Ok(());
    }
    // The table may contain any text, so `owner` is shown only if it is a device ID.
    let reason = match DeviceId::parse_sn(owner) {
        Ok(owner) => format!("this identity belongs to device {owner}"),
        Err(_) => "this identity belongs to another device".to_owned(),
    };
    Err(Conflict { column: "pskIdentity", reason })
}

/// Returns the name under which the device of these columns is, or will be, registered.
pub fn name_of(device: &DeviceId, columns: &Columns<'_>) -> String {
    columns.device_name.map_or_else(|| device.device_name(), str::to_owned)
}

/// Fails if another device, `holder`, has the row's name in the same product.
pub fn unique_name(holder: Option<DeviceId>, name: &str) -> Result<(), Conflict> {
    let Some(holder) = holder else { return Ok(()) };
    let reason = format!(
        "device {holder} has the same name, {name}, in this product: two devices cannot share one device at IoT \
         Platform"
    );
    Err(Conflict { column: "deviceName", reason })
}

/// Fails if another device, `holder`, has the row's `IotId`.
pub fn unique_iot_id(holder: Option<DeviceId>) -> Result<(), Conflict> {
    let Some(holder) = holder else { return Ok(()) };
    Err(Conflict { column: "iotId", reason: format!("device {holder} has the same iotId") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::roll::Used;

    fn id() -> DeviceId {
        DeviceId::parse("SN-1").unwrap()
    }

    fn row() -> ImportRow {
        ImportRow::new(id(), "lamps", "a1lamp")
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    fn stored() -> DeviceRow {
        DeviceRow::imported(id(), "lamps", "a1lamp")
    }

    fn registered() -> DeviceRow {
        DeviceRow { device_name: Some("one".into()), ..stored().with_certificate("one", "s3cret") }
    }

    #[test]
    fn a_new_device_takes_the_enrollments_product_unless_it_has_one_of_its_own() {
        assert_eq!(new_device(&row()).product_key, "a1lamp");
        assert_eq!(
            new_device(&ImportRow { product_key: Some("a1own".into()), ..row() }).product_key,
            "a1own"
        );
    }

    #[test]
    fn an_empty_column_leaves_the_table_as_it_is() {
        let stored = DeviceRow { product_key: "a1own".into(), iot_id: Some("i".into()), ..registered() };
        assert_eq!(known_device(&stored, &row(), false), Ok(None));
    }

    #[test]
    fn a_device_that_moves_takes_the_new_enrollments_product_and_leaves_its_key() {
        let stored = DeviceRow { product_key: "a1own".into(), ..stored() };
        let moved = ImportRow { enrollment: "plugs".into(), enrollment_product: "a1plug".into(), ..row() };
        let change = known_device(&stored, &moved, false).unwrap().unwrap();
        assert_eq!((change.columns.enrollment, change.columns.product_key), ("plugs", "a1plug"));
        assert!(change.drops_key);

        let own = ImportRow { product_key: Some("a1own".into()), individual: true, ..moved };
        let change = known_device(&stored, &own, false).unwrap().unwrap();
        assert_eq!((change.columns.product_key, change.drops_key), ("a1own", false));
    }

    #[test]
    fn each_column_changes_a_device_without_a_certificate() {
        let stored = DeviceRow { device_name: Some("one".into()), iot_id: Some("i".into()), ..stored() };
        let rows = [
            ImportRow { product_key: Some("a1own".into()), ..row() },
            ImportRow { device_name: Some("two".into()), ..row() },
            ImportRow { device_name: Some("one".into()), device_secret: Some(secret("s")), ..row() },
            ImportRow { iot_id: Some("j".into()), ..row() },
            ImportRow { target: Some("tokyo".into()), ..row() },
        ];
        for row in rows {
            let change = known_device(&stored, &row, false).unwrap().unwrap();
            assert!(!change.drops_key, "{row:?}");
        }
    }

    #[test]
    fn a_certificate_keeps_what_it_depends_on_and_takes_what_it_lacks() {
        let conflict = |stored: &DeviceRow, row| known_device(stored, &row, false).unwrap_err().column;
        let known = DeviceRow { iot_id: Some("i".into()), ..registered() };
        let other = [
            (ImportRow { enrollment: "plugs".into(), ..row() }, "enrollment"),
            (ImportRow { product_key: Some("a1plug".into()), ..row() }, "productKey"),
            (ImportRow { device_name: Some("two".into()), ..row() }, "deviceName"),
            (
                ImportRow { device_name: Some("one".into()), device_secret: Some(secret("0ther")), ..row() },
                "deviceSecret",
            ),
            (ImportRow { iot_id: Some("j".into()), ..row() }, "iotId"),
            (ImportRow { target: Some("tokyo".into()), ..row() }, "target"),
        ];
        for (row, column) in other {
            assert_eq!(conflict(&known, row), column);
        }
        let identified = ImportRow { iot_id: Some("i".into()), ..row() };
        let (known, before) = (known, registered());
        assert_eq!(known_device(&known, &identified, false), Ok(None));
        assert_eq!(known_device(&before, &identified, false).unwrap().unwrap().columns.iot_id, Some("i"));
    }

    #[test]
    fn a_certificate_has_the_target_that_is_given_or_that_of_its_enrollment() {
        let some = |target: &str| Some(target.to_owned());
        let with_secret =
            |row| ImportRow { device_name: Some("one".into()), device_secret: Some(secret("s")), ..row };
        let of_tokyo = || ImportRow { enrollment_target: some("tokyo"), ..row() };
        let osaka = || ImportRow { target: some("osaka"), ..of_tokyo() };
        for (row, expected) in [
            (row(), None),
            (of_tokyo(), None),
            (osaka(), Some("osaka")),
            (with_secret(row()), None),
            (with_secret(of_tokyo()), Some("tokyo")),
            (with_secret(osaka()), Some("osaka")),
        ] {
            assert_eq!(new_device(&row).target, expected, "{row:?}");
            let stored = stored();
            let changed = known_device(&stored, &row, false).unwrap();
            assert_eq!(changed.and_then(|change| change.columns.target), expected, "{row:?}");
        }
    }

    #[test]
    fn a_registered_device_stays_at_its_target_whatever_its_enrollment_says() {
        let at = |target: Option<&str>| DeviceRow { target: target.map(str::to_owned), ..registered() };
        let same = |row: &ImportRow, stored: &DeviceRow| {
            known_device(stored, row, true).is_ok_and(|change| change.is_none())
        };
        let of_tokyo = ImportRow {
            enrollment_target: Some("tokyo".into()),
            device_name: Some("one".into()),
            device_secret: Some(secret("s3cret")),
            ..row()
        };
        assert!(same(&of_tokyo, &at(None)) && same(&of_tokyo, &at(Some("osaka"))));
        let explicit = |target: &str| ImportRow { target: Some(target.into()), ..of_tokyo.clone() };
        assert!(same(&explicit("default"), &at(None)) && same(&explicit("osaka"), &at(Some("osaka"))));
        for (stored, own, other) in [(None, "default", "osaka"), (Some("osaka"), "osaka", "default")] {
            let conflict = known_device(&at(stored), &explicit(other), true).unwrap_err();
            assert_eq!(conflict.column, "target");
            assert!(conflict.reason.ends_with(&format!("at target \"{own}\"")), "{conflict:?}");
        }
    }

    #[test]
    fn a_device_that_moves_to_another_enrollment_leaves_its_target() {
        let stored = DeviceRow { target: Some("osaka".into()), ..stored() };
        assert_eq!(known_device(&stored, &row(), false), Ok(None));
        let moved = ImportRow { enrollment: "plugs".into(), ..row() };
        assert_eq!(known_device(&stored, &moved, false).unwrap().unwrap().columns.target, None);
        let told = ImportRow { target: Some("osaka".into()), ..moved };
        assert_eq!(known_device(&stored, &told, false).unwrap().unwrap().columns.target, Some("osaka"));
    }

    #[test]
    fn a_secret_that_only_looks_different_is_no_change() {
        let row = ImportRow {
            device_name: Some("one".into()),
            device_secret: Some(secret("looks different")),
            ..row()
        };
        let same: SameSecret<'_> =
            &|_, stored, other| Ok(stored.expose() == "s3cret" && other.expose() == "looks different");
        assert!(has_same_secret(&registered(), &row, same).unwrap());
        assert_eq!(known_device(&registered(), &row, true), Ok(None));
        // The stored device has no certificate, so the import sets its secret.
        assert!(!has_same_secret(&stored(), &row, same).unwrap());
        let stored = stored();
        let change = known_device(&stored, &row, false).unwrap().unwrap();
        assert_eq!(change.columns.device_secret, row.device_secret.as_ref());
    }

    #[test]
    fn a_conflict_shows_no_secret() {
        let (known, other) = (registered(), ImportRow { device_secret: Some(secret("0ther")), ..row() });
        let conflict = known_device(&known, &other, false).unwrap_err();
        assert!(!conflict.reason.contains("s3cret") && !conflict.reason.contains("0ther"), "{conflict:?}");
    }

    #[test]
    fn only_an_individual_device_needs_a_key() {
        let individual = ImportRow { individual: true, ..row() };
        assert_eq!(without_key(&row(), false), Ok(()));
        assert_eq!(without_key(&individual, true), Ok(()));
        assert_eq!(without_key(&individual, false).unwrap_err().column, "pskIdentity");
    }

    /// Returns the effect of a row on a device with these keys under the identity `one`.
    fn rolled(
        stored: Option<(&str, Option<&str>)>,
        row: (&str, &str, Option<&str>),
    ) -> Result<KeyChange, &'static str> {
        rolled_after(stored, [None; 2], row)
    }

    fn rolled_after(
        stored: Option<(&str, Option<&str>)>,
        used: Used,
        (identity, psk, next): (&str, &str, Option<&str>),
    ) -> Result<KeyChange, &'static str> {
        let stored = stored.map(|(psk, next)| DeviceKeys {
            identity: "one".into(),
            psk: secret(psk),
            next: next.map(secret),
            used,
        });
        let key = Some((identity.to_owned(), secret(psk)));
        let row = ImportRow { individual: true, key, next_key: next.map(secret), ..row() };
        let same: SameSecret<'_> = &|_, stored, other| Ok(stored == other);
        key_change(stored.as_ref(), &row, same).unwrap().map_err(|conflict| conflict.column)
    }

    #[test]
    fn a_roll_is_begun_ended_and_kept_by_rows_that_fit_its_keys() {
        let (one, two) = (Some(("a", None)), Some(("a", Some("b"))));
        for (stored, row, expected) in [
            (None, ("one", "a", None), Ok(KeyChange::Added)),
            (None, ("one", "a", Some("b")), Ok(KeyChange::Added)),
            (one, ("one", "a", None), Ok(KeyChange::None)),
            (one, ("one", "c", None), Ok(KeyChange::Lost)),
            (one, ("two", "a", None), Ok(KeyChange::Lost)),
            (one, ("one", "a", Some("b")), Ok(KeyChange::NextAdded)),
            (one, ("one", "c", Some("b")), Err("psk")),
            (one, ("two", "a", Some("b")), Err("psk")),
            (one, ("one", "c", Some("a")), Err("pskNext")),
            (two, ("one", "a", None), Ok(KeyChange::None)),
            (two, ("one", "a", Some("b")), Ok(KeyChange::None)),
            (two, ("one", "a", Some("c")), Ok(KeyChange::Lost)),
            (two, ("one", "b", None), Ok(KeyChange::Lost)),
            (two, ("one", "c", None), Err("psk")),
            (two, ("two", "b", None), Err("psk")),
            (two, ("one", "b", Some("c")), Err("psk")),
            (two, ("one", "b", Some("a")), Err("pskNext")),
            (two, ("two", "a", Some("b")), Err("psk")),
        ] {
            assert_eq!(rolled(stored, row), expected, "{stored:?} {row:?}");
        }
    }

    #[test]
    fn no_row_removes_the_key_that_the_device_has_used_last() {
        let two = Some(("a", Some("b")));
        let (current, next) = ([Some(2), Some(1)], [Some(1), Some(2)]);
        let (ends, replaces, keeps) = (("one", "b", None), ("one", "a", Some("c")), ("one", "a", Some("b")));
        assert_eq!(rolled_after(two, current, ends), Err("psk"));
        assert_eq!(rolled_after(two, current, replaces), Ok(KeyChange::Lost));
        assert_eq!(rolled_after(two, next, ends), Ok(KeyChange::Lost));
        assert_eq!(rolled_after(two, next, replaces), Err("pskNext"));
        for used in [current, next] {
            assert_eq!(rolled_after(two, used, keeps), Ok(KeyChange::None));
            assert_eq!(rolled_after(two, used, ("one", "a", None)), Ok(KeyChange::None));
        }
    }

    #[test]
    fn an_identity_has_one_owner_who_is_named_if_it_can_be() {
        assert_eq!(identity_of("SN-1", &row()), Ok(()));
        let reason = |owner| identity_of(owner, &row()).unwrap_err().reason;
        assert_eq!(reason("SN-2"), "this identity belongs to device SN-2");
        assert_eq!(reason("\n"), "this identity belongs to another device");
    }

    #[test]
    fn a_row_that_changes_nothing_neither_moves_nor_loses_a_key() {
        let of = |moves, changed, key| Merged::of(moves, changed, key);
        assert_eq!(of(false, false, KeyChange::None), Merged::Unchanged);
        assert_eq!(of(true, true, KeyChange::Lost), Merged::Changed { moves: true, loses_key: true });
        assert_eq!(of(false, true, KeyChange::None), Merged::Changed { moves: false, loses_key: false });
        assert_eq!(of(false, false, KeyChange::Added), Merged::Changed { moves: false, loses_key: false });
    }
}
