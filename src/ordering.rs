//! Places the orders of operators. Decides for the command line and the console which orders a
//! device may have, and gives the reason if it may have none. The store keeps an order, and the
//! registrar carries it out.

use crate::{
    device::DeviceId,
    policy,
    psk::Terms,
    registrar::{Rights, Targets},
    store::{
        Actor, DeviceRow, Store, StoreError, UnixSeconds,
        order::{Begun, Former, Move, Order, OrderKind, OrderNumber, Placed, Step},
    },
};

/// Result of placing an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ordered {
    /// The order is in the store, and is carried out.
    Placed(OrderNumber),
    /// The device has no certificate, so it is not at IoT Platform. The change was made in the table
    /// alone.
    Here,
    /// The device is at the target of the move already.
    There,
    /// The order was not placed, and nothing was changed.
    Refused(Refusal),
}

/// Reason for which an order is not placed for a device. Its text follows the name of the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The device is not in the table.
    #[error("is not in the table")]
    NoDevice,
    /// The target of the device is not configured.
    #[error("its target {0} is not in the configuration")]
    NoTarget(String),
    /// The cloud of this target cannot be called, for this reason.
    #[error("its target {0} cannot be called: {1}")]
    NoCloud(String, String),
    /// The configuration does not permit changes at this target.
    #[error("manage = true is not set for its target {0}")]
    NotPermitted(String),
    /// The device would get no new certificate, because this enrollment gives out no first
    /// certificates now.
    #[error(
        "enrollment {0} gives out no first certificates now (opens, closes), so the device would get no new one; \
         change that first"
    )]
    Shut(String),
    /// The device is being registered.
    #[error("is being registered; try again when that has ended")]
    Registering,
    /// A registration of the device has begun at this target and may have been carried out there.
    #[error(
        "its registration has begun at target {0} and may have been carried out there, so the device is not \
         registered elsewhere as well. It continues at {0} with the next request; if that target is gone, `certdist \
         device move --abandon` gives the registration up"
    )]
    Begun(String),
    /// The device has no certificate.
    #[error("has no certificate, so it has no secret to rotate")]
    NoCertificate,
    /// The product of the device at the new target is not known, for this reason.
    #[error("{0}")]
    NoProduct(String),
    /// The device is in the product of the move already.
    #[error(
        "is in this product already, and a product is in one instance only; give the product of the new target with \
         --product"
    )]
    SameProduct,
    /// This other device has the same name in the product of the move.
    #[error("device {0} has the same name in the product of the new target; correct or delete one of them")]
    NameTaken(DeviceId),
    /// The device has an order of another kind, or a move to another destination.
    #[error("has another order, to {0}, that is not carried out yet; `certdist device cancel` ends it")]
    Other(OrderKind),
}

/// Places an order for a device, unless something forbids it. `terms` returns the terms of the
/// enrollment of this name, if it is in the configuration.
pub async fn place(
    store: &(impl Store + ?Sized),
    targets: &Targets,
    terms: impl Fn(&str) -> Option<Terms>,
    device: &DeviceId,
    (kind, by): (OrderKind, &Actor),
) -> Result<Ordered, StoreError> {
    if let Some(row) = store.device(device).await?
        && let Some(refusal) = refusal(&row, kind, targets, terms(&row.enrollment), store.now())
    {
        return Ok(Ordered::Refused(refusal));
    }
    Ok(store.place_order(device, kind, by).await?.into())
}

/// Places an order that moves a device, unless something forbids it. `to` gets the name of the device's
/// enrollment and returns the destination. `begun` decides about a registration that has begun
/// elsewhere.
pub async fn place_move(
    store: &(impl Store + ?Sized),
    targets: &Targets,
    terms: impl Fn(&str) -> Option<Terms>,
    device: &DeviceId,
    (to, begun, by): (impl Fn(&str) -> Result<Move, Refusal>, Begun, &Actor),
) -> Result<Ordered, StoreError> {
    let Some(row) = store.device(device).await? else { return Ok(Ordered::Refused(Refusal::NoDevice)) };
    let to = match to(&row.enrollment) {
        Ok(to) => to,
        Err(refusal) => return Ok(Ordered::Refused(refusal)),
    };
    let changes_former = row.certificate.is_some() && to.former != Former::Keep;
    let refusal = unmanaged(&row, targets).filter(|_| changes_former);
    // After a move, the new certificate counts as a first one. So a device that has had its
    // certificate is moved only while its enrollment gives out first certificates.
    let shut = || shut(&row, terms(&row.enrollment)?, store.now()).filter(|_| row.first_issued.is_some());
    let refusal = refusal.or_else(shut);
    match refusal {
        Some(refusal) => Ok(Ordered::Refused(refusal)),
        None => Ok(store.place_move(device, &to, begun, by).await?.into()),
    }
}

impl From<Placed> for Ordered {
    fn from(placed: Placed) -> Self {
        match placed {
            Placed::Yes(number) => Ordered::Placed(number),
            Placed::Here => Ordered::Here,
            Placed::There => Ordered::There,
            Placed::NoDevice => Ordered::Refused(Refusal::NoDevice),
            Placed::Registering => Ordered::Refused(Refusal::Registering),
            Placed::Begun(target) => Ordered::Refused(Refusal::Begun(target)),
            Placed::NoCertificate => Ordered::Refused(Refusal::NoCertificate),
            Placed::SameProduct => Ordered::Refused(Refusal::SameProduct),
            Placed::NameTaken(holder) => Ordered::Refused(Refusal::NameTaken(holder)),
            Placed::Other(other) => Ordered::Refused(Refusal::Other(other)),
        }
    }
}

/// Returns the reason why no process with this configuration makes the next call of an order: `rights`
/// are those at the order's target. `None` if a server of this configuration makes it.
pub fn waits_for(order: &Order, rights: Rights<'_>) -> Option<String> {
    let target = &order.target;
    match rights {
        Rights::NotConfigured => Some(format!(
            "target {target} is not in the configuration: add it and restart certdist, or cancel the order"
        )),
        Rights::NotPermitted if order.step() != Step::Register => {
            Some(format!("manage = true is not set for target {target}"))
        }
        // In these cases, the order's failure already gives the reason.
        Rights::NotPermitted | Rights::NoCloud(_) | Rights::Permitted => None,
    }
}

/// Returns the reason why the configuration, the target or the clock forbids an order; `None` if
/// none of them does. A device without a certificate is changed in the table alone, which needs no
/// rights.
fn refusal(
    row: &DeviceRow,
    kind: OrderKind,
    targets: &Targets,
    terms: Option<Terms>,
    now: UnixSeconds,
) -> Option<Refusal> {
    row.certificate.as_ref()?;
    unmanaged(row, targets).or_else(|| shut(row, terms?, now).filter(|_| kind.registers_anew()))
}

/// Returns the reason why the device of a row cannot be changed at its target; `None` if it can be
/// changed.
fn unmanaged(row: &DeviceRow, targets: &Targets) -> Option<Refusal> {
    let target = targets.of(row);
    match targets.rights(&target) {
        Rights::NotConfigured => Some(Refusal::NoTarget(target)),
        Rights::NoCloud(reason) => Some(Refusal::NoCloud(target, reason.to_owned())),
        Rights::NotPermitted => Some(Refusal::NotPermitted(target)),
        Rights::Permitted => None,
    }
}

/// Returns a refusal if an enrollment with these terms gives out no first certificates at the time
/// `now`. The time is from the store's clock, which the registrar uses too.
fn shut(row: &DeviceRow, terms: Terms, now: UnixSeconds) -> Option<Refusal> {
    let is_shut = policy::may_have_first(terms, now).is_err();
    is_shut.then(|| Refusal::Shut(row.enrollment.clone()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::runtime::Handle;

    use super::*;
    use crate::{
        guards::Guards,
        iot_platform::NoCloud,
        psk::Reissue,
        registrar::{Config, Registrar, Target},
        store::{
            ImportRow,
            claim::{ClaimTime, Claimed, Claims, Owner},
            order::Orders,
        },
        testing::store::{Memory, import},
    };

    const OPEN: Terms =
        Terms { reissue: Reissue::Always, guards: Guards { opens: None, closes: None, ..NO_GUARDS } };
    const CLOSED: Terms = Terms { reissue: Reissue::Always, guards: Guards { closes: Some(1), ..NO_GUARDS } };
    const NO_GUARDS: Guards =
        Guards { opens: None, closes: None, max_devices: None, unlisted: crate::guards::Unlisted::Refuse };

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    /// Returns targets with and without the rights, one of them without credentials, and a store
    /// with a registered device at each of these targets, and at a target that is not configured.
    fn world() -> (Memory, Arc<Targets>) {
        let store = Memory::default();
        let target = |name: &str, manages, missing: Option<&str>| {
            let config = Config {
                target: name.into(),
                manages,
                sweep_pause: None,
                seed: Some(1),
                ..Config::default()
            };
            let owner = Owner::new("test").unwrap();
            let cloud = Arc::new(NoCloud::unconfigured());
            let registrar = Registrar::new(config, owner, Arc::new(store.clone()), cloud, Handle::current());
            let missing = missing.map(str::to_owned);
            let host = missing.is_none().then(|| format!("{name}.example"));
            Target { registrar, calls: Arc::default(), host, missing }
        };
        let all = vec![
            target("default", true, None),
            target("tokyo", false, None),
            target("osaka", false, Some("no access key")),
        ];
        let targets = Targets::new(all, Default::default(), true);
        let row = |name: &str, target: &str| ImportRow {
            device_name: Some(name.into()),
            device_secret: Some(crate::device::Secret::new("secret".into())),
            target: Some(target.into()).filter(|target| target != "default"),
            ..ImportRow::new(id(name), "lamp", "a1")
        };
        let rows = [
            row("SN-1", "default"),
            row("SN-2", "tokyo"),
            row("SN-3", "osaka"),
            row("SN-4", "kobe"),
            ImportRow::new(id("SN-5"), "lamp", "a1"),
        ];
        import(&store, rows);
        (store, targets)
    }

    #[tokio::test]
    async fn an_order_that_no_process_carries_out_has_the_reason() {
        let (store, targets) = world();
        let by = Actor::system_user();
        let to = Move { target: "kyoto".into(), product_key: "k1".into(), former: Former::Keep };
        store.place_move(&id("SN-1"), &to, Begun::Keep, &by).await.unwrap();
        for (device, kind) in [("SN-2", OrderKind::Disable), ("SN-3", OrderKind::Disable)] {
            store.place_order(&id(device), kind, &by).await.unwrap();
        }
        let waits = async |device: &str| {
            let order = store.order_of(&id(device)).await.unwrap().expect("an order");
            waits_for(&order, targets.rights(&order.target))
        };
        let lost =
            "target kyoto is not in the configuration: add it and restart certdist, or cancel the order";
        assert_eq!(waits("SN-1").await.as_deref(), Some(lost));
        assert_eq!(waits("SN-2").await.as_deref(), Some("manage = true is not set for target tokyo"));
        assert_eq!(waits("SN-3").await, None, "its failure has the reason");
        // Registering a device needs no right.
        let to = Move { target: "tokyo".into(), ..to };
        store.place_move(&id("SN-4"), &to, Begun::Keep, &by).await.unwrap();
        assert_eq!(waits("SN-4").await, None);
    }

    #[tokio::test]
    async fn a_registration_that_has_begun_elsewhere_is_given_up_on_request_only() {
        let (store, targets) = world();
        let (by, owner) = (Actor::system_user(), Owner::new("gone").unwrap());
        let row = store.device(&id("SN-5")).await.unwrap().unwrap();
        let claimed = store.claim(&owner, &row.wanted("kobe"), ClaimTime { at: 1, cloud_offset: None }).await;
        assert!(matches!(claimed.unwrap(), Claimed::Yours(_)));
        let to =
            |_: &str| Ok(Move { target: "tokyo".into(), product_key: "t1".into(), former: Former::Keep });
        let move_it = async |begun| {
            place_move(&store, &targets, |_| Some(OPEN), &id("SN-5"), (to, begun, &by)).await.unwrap()
        };
        assert_eq!(move_it(Begun::Abandon).await, Ordered::Refused(Refusal::Registering));
        store.retire(owner.id).await.unwrap();
        let Ordered::Refused(refusal) = move_it(Begun::Keep).await else {
            panic!("it may be registered twice")
        };
        let said = refusal.to_string();
        assert!(said.contains("has begun at target kobe") && said.contains("--abandon"), "{said}");
        assert_eq!(move_it(Begun::Abandon).await, Ordered::Here);
    }

    #[tokio::test]
    async fn an_enrollment_is_shut_by_the_clock_of_the_store() {
        let (store, targets) = world();
        let by = Actor::system_user();
        let closes = Some(Store::now(&store) + 1000);
        let terms = |_: &str| Some(Terms { guards: Guards { closes, ..NO_GUARDS }, ..OPEN });
        store.set_clock_ahead(2000);
        let ordered = place(&store, &targets, terms, &id("SN-1"), (OrderKind::Rotate, &by)).await.unwrap();
        assert_eq!(ordered, Ordered::Refused(Refusal::Shut("lamp".into())));
        store.set_clock_ahead(0);
        let ordered = place(&store, &targets, terms, &id("SN-1"), (OrderKind::Rotate, &by)).await.unwrap();
        assert!(matches!(ordered, Ordered::Placed(_)), "{ordered:?}");
    }

    #[tokio::test]
    async fn an_order_needs_a_target_that_permits_it_and_is_refused_with_the_reason() {
        let (store, targets) = world();
        let by = Actor::system_user();
        let said = async |device: &str, kind, terms| {
            let device = id(device);
            match place(&store, &targets, |_| Some(terms), &device, (kind, &by)).await.unwrap() {
                Ordered::Placed(_) => "placed".to_owned(),
                Ordered::Here => "here".to_owned(),
                Ordered::There => "there".to_owned(),
                Ordered::Refused(refusal) => refusal.to_string(),
            }
        };
        assert_eq!(
            said("SN-2", OrderKind::Rotate, OPEN).await,
            "manage = true is not set for its target tokyo"
        );
        assert_eq!(
            said("SN-3", OrderKind::Disable, OPEN).await,
            "its target osaka cannot be called: no access key"
        );
        assert_eq!(
            said("SN-4", OrderKind::Delete, OPEN).await,
            "its target kobe is not in the configuration"
        );
        assert_eq!(said("SN-9", OrderKind::Delete, OPEN).await, "is not in the table");
        assert_eq!(
            said("SN-5", OrderKind::Rotate, OPEN).await,
            "has no certificate, so it has no secret to rotate"
        );
        assert_eq!(said("SN-5", OrderKind::Disable, OPEN).await, "here");
        assert!(said("SN-1", OrderKind::Rotate, CLOSED).await.contains("enrollment lamp gives out no first"));
        assert_eq!(said("SN-1", OrderKind::Disable, CLOSED).await, "placed");
        assert_eq!(said("SN-1", OrderKind::Disable, CLOSED).await, "placed", "the order stands");
        assert!(said("SN-1", OrderKind::Rotate, OPEN).await.contains("another order, to disable"));
    }
}
