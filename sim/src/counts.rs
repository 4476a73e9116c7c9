//! Numbers that can be named, added up and looked at one by one.

use spillway_runtime::faults::{self, Point};

use crate::plan::{FAULT_KINDS, FaultCounts, FaultKind};

/// A struct of counters, and of other things that are counted, with the view of all by name.
macro_rules! counted {
    (
        $(#[$struct_attribute:meta])*
        pub struct $struct_name:ident {
            $($(#[$attribute:meta])* pub $name:ident: $counted:ty,)*
        }
    ) => {
        $(#[$struct_attribute])*
        pub struct $struct_name {
            $($(#[$attribute])* pub $name: $counted,)*
        }

        impl $crate::counts::Counted for $struct_name {
            fn add(&mut self, other: &Self) {
                $($crate::counts::Counted::add(&mut self.$name, &other.$name);)*
            }

            fn list(&self, _name: &str, out: &mut Vec<$crate::counts::Counter>) {
                $($crate::counts::Counted::list(&self.$name, stringify!($name), out);)*
            }
        }
    };
}

pub(crate) use counted;

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// What is counted in a run, and added up over many.
pub trait Counted {
    /// Adds another run's.
    fn add(&mut self, other: &Self);

    /// Lists all counters, in an order that does not change; a single one has this name.
    fn list(&self, name: &str, out: &mut Vec<Counter>);

    /// All of them.
    fn counters(&self) -> Vec<Counter> {
        let mut out = Vec::new();
        self.list("", &mut out);
        out
    }
}

impl Counted for u64 {
    fn add(&mut self, other: &Self) {
        *self += other;
    }

    fn list(&self, name: &str, out: &mut Vec<Counter>) {
        out.push(Counter { name: name.to_owned(), count: *self });
    }
}

impl Counted for FaultCounts {
    fn add(&mut self, other: &Self) {
        FaultCounts::add(self, other);
    }

    fn list(&self, _name: &str, out: &mut Vec<Counter>) {
        for kind in FAULT_KINDS {
            out.push(Counter { name: fault_name(kind), count: self.of(kind) });
        }
    }
}

impl Counted for faults::Counts {
    fn add(&mut self, other: &Self) {
        faults::Counts::add(self, other);
    }

    fn list(&self, _name: &str, out: &mut Vec<Counter>) {
        for point in Point::ALL {
            let name = format!("point {}", point.name());
            out.push(Counter { name, count: self.of(point).fired });
        }
    }
}

/// The name of the counter of a kind of faults.
pub fn fault_name(kind: FaultKind) -> String {
    format!("fault {}", kind.name())
}

#[cfg(test)]
mod tests {
    use super::{Counted, Counter};

    counted! {
        /// Two.
        #[derive(Default)]
        pub struct Two {
            /// The first.
            pub first: u64,
            /// The second.
            pub second: u64,
        }
    }

    #[test]
    fn counters_are_named_and_added() {
        let mut sum = Two { first: 1, second: 2 };
        sum.add(&Two { first: 10, second: 0 });
        let counter = |name: &str, count| Counter { name: name.to_owned(), count };
        assert_eq!(sum.counters(), [counter("first", 11), counter("second", 2)]);
    }
}
