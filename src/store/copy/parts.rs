//! Parts of the content of a store: their columns, and the order of their records. Everything else is
//! left out of a copy: owners, leases, paces and sessions belong to running processes; a store derives
//! its counts and indexes from its records; and it learns again which refusals are in the log.

use super::Value;

/// Kind of the values in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Number.
    Number,
    /// 0 or 1.
    Flag,
    /// Text that may be sealed.
    Secret,
}

/// Column of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Name, as in `schema.sql`.
    pub name: &'static str,
    /// Kind of its values.
    pub kind: Kind,
}

macro_rules! columns {
    ($($name:ident $kind:ident),* $(,)?) => {
        &[$(Column { name: stringify!($name), kind: Kind::$kind }),*]
    };
}

/// Part of the content of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Devices, in order of their IDs.
    Devices,
    /// Keys of individual devices, in order of their identities.
    Keys,
    /// Numbers of all imports.
    ImportNumbers,
    /// Imports that can be undone.
    Imports,
    /// Former values of the rows that an import has changed, ordered by import and then by the order of
    /// the changes.
    Before,
    /// Uses of the keys of enrollments.
    KeyUses,
    /// Devices that wait to be admitted.
    Waiting,
    /// Batches in the journal. No process owns them in the copy.
    Batches,
    /// Claims in the journal. No process owns them in the copy.
    Claims,
    /// Kept places.
    Places,
    /// Orders that are not carried out yet.
    Orders,
    /// Records of repeats, in the order in which they were added. One record stands for all equal
    /// requests of a day.
    Repeats,
    /// Entries of the audit log.
    Entries,
}

impl Part {
    /// All parts. A part comes after the parts to which its records refer.
    pub const ALL: [Self; 13] = [
        Self::Devices,
        Self::Keys,
        Self::ImportNumbers,
        Self::Imports,
        Self::Before,
        Self::KeyUses,
        Self::Waiting,
        Self::Batches,
        Self::Claims,
        Self::Places,
        Self::Orders,
        Self::Repeats,
        Self::Entries,
    ];

    /// Returns the name for messages and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Keys => "keys",
            Self::ImportNumbers => "importNumbers",
            Self::Imports => "imports",
            Self::Before => "importedOver",
            Self::KeyUses => "keyUses",
            Self::Waiting => "waiting",
            Self::Batches => "batches",
            Self::Claims => "claims",
            Self::Places => "places",
            Self::Orders => "orders",
            Self::Repeats => "repeats",
            Self::Entries => "auditEntries",
        }
    }

    /// Returns the name of the table in SQL, which all stores share. The entries have a table of their
    /// own in each store.
    pub fn table(self) -> &'static str {
        match self {
            Self::Devices => "device_table",
            Self::Keys => "device_key",
            Self::ImportNumbers => "import_number",
            Self::Imports => "import",
            Self::Before => "import_before",
            Self::KeyUses => "key_use",
            Self::Waiting => "device_waiting",
            Self::Batches => "registration_batch",
            Self::Claims => "registration_claim",
            Self::Places => "kept_place",
            Self::Orders => "cloud_order",
            Self::Repeats => "audit_repeat",
            Self::Entries => "audit_entry",
        }
    }

    /// Returns the columns by which the records of the table are ordered, byte by byte. The records of
    /// [`Part::Before`], [`Part::Repeats`] and [`Part::Entries`] have an order of their own in each
    /// store.
    pub fn order(self) -> &'static str {
        match self {
            Self::Devices | Self::Claims | Self::Places => "deviceId",
            Self::Keys => "pskIdentity",
            Self::ImportNumbers => "importId",
            Self::Imports | Self::Orders | Self::Repeats => "number",
            Self::Before => "importId, number",
            Self::KeyUses => "enrollment, keyId",
            Self::Waiting => "deviceId, enrollment",
            Self::Batches => "batchId",
            Self::Entries => "seq",
        }
    }

    /// Returns the first secret in a record of this part, as it is stored.
    pub fn secret_of(self, record: &[Value]) -> Option<&str> {
        let mut values = self.columns().iter().zip(record);
        values.find_map(|(column, value)| value.as_text().filter(|_| column.kind == Kind::Secret))
    }

    /// Returns the columns of a record.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Devices => columns![
                deviceId Text, registerTime Number, activateTime Number, productKey Text, deviceName Text,
                deviceSecret Secret, IotId Text, enrollment Text, state Text, firstIssued Number, refusal Text,
                cloudState Text, issueId Number, importId Number, target Text,
            ],
            Self::Keys => columns![
                pskIdentity Text, deviceId Text, psk Secret, pskNext Secret, nextSince Number, pskUsed Number,
                pskNextUsed Number,
            ],
            Self::ImportNumbers => columns![importId Number],
            Self::Imports => columns![
                number Number, importId Number, at Number, who Text, file Text, added Number, changed Number,
                undone Number,
            ],
            Self::Before => columns![
                importId Number, deviceId Text, former Number, enrollment Text, productKey Text, deviceName Text,
                IotId Text, refusal Text, hadSecret Flag, keyChange Text, target Text, addedNext Flag,
            ],
            Self::KeyUses => columns![
                enrollment Text, keyId Text, since Number, handshakes Number, lastUsed Number,
            ],
            Self::Waiting => columns![
                deviceId Text, enrollment Text, first Number, last Number, count Number, address Text,
            ],
            Self::Batches => columns![
                batchId Number, productKey Text, applyId Number, openedAt Number, target Text,
            ],
            Self::Claims => columns![
                deviceId Text, productKey Text, deviceName Text, openedAt Number, cloudOffset Number, batchId Number,
                asked Number, enrollment Text, target Text,
            ],
            Self::Places => columns![deviceId Text, enrollment Text],
            Self::Orders => columns![
                number Number, deviceId Text, work Text, productKey Text, deviceName Text, IotId Text,
                orderedAt Number, who Text, address Text, failure Text, target Text, isConfirmed Flag,
                fromTarget Text, toTarget Text, toProduct Text, former Text, askedAt Number, cloudOffset Number,
                isStored Flag,
            ],
            Self::Repeats => columns![
                event Text, deviceId Text, enrollment Text, who Text, detail Text, count Number, first Number,
                last Number, address Text, firstAddress Text,
            ],
            Self::Entries => columns![seq Number, line Text],
        }
    }
}
