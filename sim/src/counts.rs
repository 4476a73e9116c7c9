//! Numbers that can be named, added up and looked at one by one.

/// A struct of counters, all `u64`, with [`Counter`]'s view of them.
macro_rules! counted {
    (
        $(#[$struct_attribute:meta])*
        pub struct $struct_name:ident {
            $($(#[$attribute:meta])* pub $name:ident: u64,)*
        }
    ) => {
        $(#[$struct_attribute])*
        pub struct $struct_name {
            $($(#[$attribute])* pub $name: u64,)*
        }

        impl $struct_name {
            /// All counters with their names, in the order in which they are declared.
            pub fn each(&self) -> Vec<$crate::counts::Counter> {
                vec![$($crate::counts::Counter { name: stringify!($name), count: self.$name },)*]
            }

            /// Adds another run's.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

pub(crate) use counted;

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its name.
    pub name: &'static str,
    /// How often.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::Counter;

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
        let expected = [Counter { name: "first", count: 11 }, Counter { name: "second", count: 2 }];
        assert_eq!(sum.each(), expected);
    }
}
