//! Tests of the consoles of two servers that share one SQLite file.

use crate::support::{
    Site,
    console::{admin, free_address, use_alternately},
};

#[test]
fn each_request_of_a_user_may_go_to_another_server() {
    let (first, second) = (free_address(), free_address());
    let configuration = |address| {
        format!(
            "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n{}\
             [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\n\
             key = \"hex:000102030405060708090a0b0c0d0e0f\"\n",
            admin(address, "")
        )
    };
    let site = Site::configured(&configuration(first));
    site.import("deviceId\nSN-1\n");
    let one = site.serve();
    site.write("certdist.toml", &configuration(second));
    let other = site.serve();
    use_alternately([first, second]);
    drop((one, other));
}
