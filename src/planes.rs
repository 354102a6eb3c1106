//! A stand-in until the control plane is in the tree.

pub mod controlplane {
    use common::config::Config;
    use std::path::PathBuf;
    use std::process::ExitCode;

    pub fn run(_: Config, _: Option<PathBuf>, _: bool) -> ExitCode {
        super::missing()
    }

    pub mod operator {
        use common::config::{Config, RealmConfig};
        use std::process::ExitCode;

        pub fn status(_: &Config) -> ExitCode {
            super::super::missing()
        }

        pub fn realm_add(_: &Config, _: RealmConfig) -> ExitCode {
            super::super::missing()
        }

        pub fn realm_list(_: &Config) -> ExitCode {
            super::super::missing()
        }

        pub fn realm_remove(_: &Config, _: &str) -> ExitCode {
            super::super::missing()
        }
    }
}

fn missing() -> std::process::ExitCode {
    eprintln!("signalbox: this command is not built yet");
    std::process::ExitCode::FAILURE
}
