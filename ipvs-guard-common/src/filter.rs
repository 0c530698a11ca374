//! The user's filters, applied in the kernel so that unwanted events cost no ring space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Addr, Endpoint};

/// Alternatives that each kind of filter holds at most.
pub const MAX_RULES: usize = 8;

/// One alternative: a network and, unless it is 0, a port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rule {
    addr: Addr,
    mask: Addr,
    port: u16,
    pad: [u8; 6],
}

impl Rule {
    /// Matches addresses that share `prefix` bits (0 to 128, of the mapped form
    /// for IPv4) with `addr`, on `port` or, if that is 0, on any.
    pub const fn new(addr: Addr, prefix: u8, port: u16) -> Self {
        Self {
            addr,
            mask: Addr::mask(prefix),
            port,
            pad: [0; 6],
        }
    }

    #[inline(always)]
    fn admits(&self, endpoint: &Endpoint) -> bool {
        (self.port == 0 || self.port == endpoint.port())
            && self.addr.matches(endpoint.addr(), &self.mask)
    }
}

/// Alternatives of one kind; none admit everything.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rules {
    rules: [Rule; MAX_RULES],
    len: u32,
    pad: u32,
}

impl Rules {
    /// Adds an alternative; gives it back when [`MAX_RULES`] are there already.
    pub fn push(&mut self, rule: Rule) -> Result<(), Rule> {
        let slot = self.rules.get_mut(self.len as usize).ok_or(rule)?;
        *slot = rule;
        self.len += 1;
        Ok(())
    }

    /// Whether there is no alternative: everything is admitted.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether one of the alternatives, or none being there, admits `endpoint`.
    #[inline(always)]
    pub fn admits(&self, endpoint: &Endpoint) -> bool {
        if self.len == 0 {
            return true;
        }
        for (i, rule) in self.rules.iter().enumerate() {
            if i as u32 >= self.len {
                return false;
            }
            if rule.admits(endpoint) {
                return true;
            }
        }
        false
    }
}

/// `--vip`, `--client`, `--dest` and `--netns`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Filter {
    /// Virtual services.
    pub vip: Rules,
    /// Clients.
    pub client: Rules,
    /// Real servers.
    pub dest: Rules,
    /// Inode of the only network namespace wanted; 0 for all.
    pub netns: u32,
    /// Zero.
    pub pad: u32,
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn endpoint(ip: &str, port: u16) -> Endpoint {
        Endpoint::new(ip.parse::<IpAddr>().unwrap().into(), port.to_be_bytes())
    }

    fn rule(ip: &str, prefix: u8, port: u16) -> Rule {
        Rule::new(ip.parse::<IpAddr>().unwrap().into(), prefix, port)
    }

    #[test]
    fn no_rule_admits_all() {
        assert!(Rules::default().admits(&endpoint("10.0.0.1", 80)));
    }

    #[test]
    fn any_of_several_rules_admits() {
        let mut rules = Rules::default();
        rules.push(rule("10.0.0.0", 96 + 8, 0)).unwrap();
        rules.push(rule("2001:db8::1", 128, 443)).unwrap();
        assert!(rules.admits(&endpoint("10.9.9.9", 1)));
        assert!(!rules.admits(&endpoint("11.9.9.9", 1)));
        assert!(rules.admits(&endpoint("2001:db8::1", 443)));
        assert!(!rules.admits(&endpoint("2001:db8::1", 80)));
    }

    #[test]
    fn one_rule_too_many_is_given_back() {
        let mut rules = Rules::default();
        for i in 0..MAX_RULES {
            rules.push(rule("10.0.0.1", 128, i as u16 + 1)).unwrap();
        }
        let extra = rule("10.0.0.2", 128, 0);
        assert_eq!(rules.push(extra), Err(extra));
        assert!(rules.admits(&endpoint("10.0.0.1", MAX_RULES as u16)));
        assert!(!rules.admits(&endpoint("10.0.0.2", 1)));
    }
}
