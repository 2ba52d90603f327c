//! Codes of requests and responses (RFC 7252 §12.1, IANA's CoAP Codes) that this server
//! accepts or sends.

/// Method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// 0.01, RFC 7252 §5.8.1.
    Get,
    /// 0.02, RFC 7252 §5.8.2.
    Post,
    /// 0.03, RFC 7252 §5.8.3.
    Put,
    /// 0.04, RFC 7252 §5.8.4.
    Delete,
    /// 0.05, RFC 8132 §2.
    Fetch,
    /// Any other method.
    Unknown,
}

impl Method {
    /// Returns the method for a request's code.
    pub(super) fn of(code: u8) -> Self {
        match code {
            1 => Self::Get,
            2 => Self::Post,
            3 => Self::Put,
            4 => Self::Delete,
            5 => Self::Fetch,
            _ => Self::Unknown,
        }
    }
}

/// Code of a response, written as `class.detail`, with one digit for the class and two for
/// the detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// 2.01.
    Created = code(2, 1),
    /// 2.02.
    Deleted = code(2, 2),
    /// 2.03.
    Valid = code(2, 3),
    /// 2.04.
    Changed = code(2, 4),
    /// 2.05.
    Content = code(2, 5),
    /// 2.31, RFC 7959 §2.9.1.
    Continue = code(2, 31),
    /// 4.00.
    BadRequest = code(4, 0),
    /// 4.01.
    Unauthorized = code(4, 1),
    /// 4.02.
    BadOption = code(4, 2),
    /// 4.03.
    Forbidden = code(4, 3),
    /// 4.04.
    NotFound = code(4, 4),
    /// 4.05.
    MethodNotAllowed = code(4, 5),
    /// 4.06.
    NotAcceptable = code(4, 6),
    /// 4.08, RFC 7959 §2.9.2.
    RequestEntityIncomplete = code(4, 8),
    /// 4.12.
    PreconditionFailed = code(4, 12),
    /// 4.13.
    RequestEntityTooLarge = code(4, 13),
    /// 4.15.
    UnsupportedContentFormat = code(4, 15),
    /// 4.29, RFC 8516.
    TooManyRequests = code(4, 29),
    /// 5.00.
    InternalServerError = code(5, 0),
    /// 5.02.
    BadGateway = code(5, 2),
    /// 5.03.
    ServiceUnavailable = code(5, 3),
    /// 5.04.
    GatewayTimeout = code(5, 4),
    /// 5.05.
    ProxyingNotSupported = code(5, 5),
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 23] = [
        Self::Created,
        Self::Deleted,
        Self::Valid,
        Self::Changed,
        Self::Content,
        Self::Continue,
        Self::BadRequest,
        Self::Unauthorized,
        Self::BadOption,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::NotAcceptable,
        Self::RequestEntityIncomplete,
        Self::PreconditionFailed,
        Self::RequestEntityTooLarge,
        Self::UnsupportedContentFormat,
        Self::TooManyRequests,
        Self::InternalServerError,
        Self::BadGateway,
        Self::ServiceUnavailable,
        Self::GatewayTimeout,
        Self::ProxyingNotSupported,
    ];

    /// Returns the byte that encodes the code in a message.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// Returns the code as it is usually written, such as `4.04`.
    pub fn name(self) -> String {
        format!("{}.{:02}", self.class(), self.byte() & 0x1f)
    }

    /// Returns the class: 2 for success, 4 for a client error, 5 for a server error.
    pub fn class(self) -> u8 {
        self.byte() >> 5
    }
}

const fn code(class: u8, detail: u8) -> u8 {
    class << 5 | detail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_registry() {
        let registered = [
            (Code::Valid, 0x43),
            (Code::Content, 0x45),
            (Code::Continue, 0x5f),
            (Code::BadRequest, 0x80),
            (Code::PreconditionFailed, 0x8c),
            (Code::TooManyRequests, 0x9d),
            (Code::ProxyingNotSupported, 0xa5),
        ];
        for (code, byte) in registered {
            assert_eq!((code.byte(), code.class()), (byte, byte >> 5), "{code:?}");
        }
        assert_eq!(Code::TooManyRequests.name(), "4.29");
        assert!(Code::ALL.is_sorted_by_key(|code| code.byte()));
        let methods = [Method::Get, Method::Post, Method::Put, Method::Delete, Method::Fetch];
        for (byte, method) in (1..).zip(methods) {
            assert_eq!(Method::of(byte), method);
        }
        assert_eq!([0, 6, 7, 31].map(Method::of), [Method::Unknown; 4]);
    }
}
