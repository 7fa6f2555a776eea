//! What tasks take of their machine beyond what every container gets: with it, whoever decides what they run is as good as
//! root there.

use reconciler_api::Kind;
use serde_json::{Map, Value};

use crate::kinds::GROUP;

/// What a template (as JSON) takes of the machine, for people; empty: no more than every container gets. What it cannot read
/// counts as taken.
pub fn taken(template: &Value) -> Vec<String> {
    let container = &template["container"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for mount in list(&container["mounts"]) {
        match &mount["type"] {
            Value::Null => {}
            Value::String(kind) if ["volume", "tmpfs", "cluster", "image"].contains(&kind.as_str()) => {}
            _ => found.push(format!("the folder {}", text(&mount["source"]))),
        }
    }
    found.extend(list(&container["devices"]).iter().map(|device| format!("the device {}", text(&device["source"]))));
    found.extend(list(&container["capabilities"]["add"]).iter().map(|name| format!("the capability {}", text(name))));
    let privileges = &container["privileges"];
    let seccomp = &privileges["seccomp"]["mode"];
    if !seccomp.is_null() && seccomp != "default" {
        found.push("all system calls".to_owned());
    }
    if privileges["apparmor"] == "disabled" || privileges["selinux"]["disabled"] == true {
        found.push("what its security module keeps from containers".to_owned());
    }
    found
}

/// What `desired` takes of machines in templates that are not in `current` as they are, with where it does: what whoever writes
/// it decides. Scaling what is there decides nothing of the kind.
pub fn taken_anew(kind: &Kind, current: Option<&Value>, desired: &Value) -> Option<(String, Vec<String>)> {
    let before = current.map(|current| templates(kind, current)).unwrap_or_default();
    templates(kind, desired)
        .into_iter()
        .filter(|(at, template)| !before.iter().any(|(there, known)| there == at && known == template))
        .map(|(at, template)| (at, taken(template)))
        .find(|(_, taken)| !taken.is_empty())
}

/// The templates of an object, with where they are.
fn templates<'a>(kind: &Kind, object: &'a Value) -> Vec<(String, &'a Value)> {
    if kind.group != GROUP {
        return Vec::new();
    }
    let spec = &object["spec"];
    let of_services = |at: &str, services: &'a Value| {
        let services = services.as_object().into_iter().flat_map(Map::iter);
        services.map(|(name, service)| (format!("{at}.services.{name}.template"), &service["template"])).collect()
    };
    match &*kind.kind {
        "Service" => vec![("spec.template".to_owned(), &spec["template"])],
        "Bundle" => of_services("spec", &spec["services"]),
        "Revision" => {
            let content = &spec["content"];
            let mut all: Vec<_> = of_services("spec.content.bundle", &content["bundle"]["services"]);
            all.push(("spec.content.template".to_owned(), &content["template"]));
            all
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use reconciler_api::Resource;
    use serde_json::json;

    use super::*;
    use crate::kinds::{Bundle, Revision, Service};

    #[test]
    fn whatever_leads_out_of_a_container_is_named_and_nothing_else_is() {
        for plain in [
            json!({"image": "web:1", "user": "root", "readOnly": true}),
            json!({"mounts": [{"source": "data", "target": "/data"}, {"type": "tmpfs", "target": "/tmp"}]}),
            json!({"capabilities": {"drop": ["ALL"]}, "privileges": {"noNewPrivileges": true, "seccomp": {"mode": "default"}}}),
        ] {
            assert_eq!(taken(&json!({"container": plain})), Vec::<String>::new());
        }
        for (with, told) in [
            (json!({"mounts": [{"type": "bind", "source": "/etc"}]}), "the folder /etc"),
            (json!({"mounts": [{"type": 7, "source": "/etc"}]}), "the folder /etc"),
            (json!({"devices": [{"source": "/dev/kmsg"}]}), "the device /dev/kmsg"),
            (json!({"capabilities": {"add": ["SYS_ADMIN"]}}), "the capability SYS_ADMIN"),
            (json!({"privileges": {"seccomp": {"mode": "unconfined"}}}), "all system calls"),
            (json!({"privileges": {"apparmor": "disabled"}}), "what its security module keeps from containers"),
            (json!({"privileges": {"selinux": {"disabled": true}}}), "what its security module keeps from containers"),
        ] {
            assert_eq!(taken(&json!({"container": with})), [told]);
        }
    }

    #[test]
    fn what_was_there_is_scaled_and_not_made_into_something_else() {
        let spec = |replicas: u32, image: &str| {
            let mounts = json!([{"type": "bind", "source": "/etc"}]);
            json!({"replicas": replicas, "template": {"container": {"image": image, "mounts": mounts}}})
        };
        let service = |replicas, image| json!({"spec": spec(replicas, image)});
        let anew = |current: Option<&Value>, desired: &Value| taken_anew(Service::kind(), current, desired);
        assert!(anew(None, &service(1, "a")).is_some());
        assert!(anew(Some(&service(1, "a")), &service(2, "a")).is_none());
        let (at, what) = anew(Some(&service(1, "a")), &service(1, "b")).unwrap();
        assert_eq!((&*at, what), ("spec.template", vec!["the folder /etc".to_owned()]));
        assert!(anew(Some(&service(1, "a")), &json!({"spec": {"template": {"container": {"image": "a"}}}})).is_none());
        let bundle = |name: &str| json!({"spec": {"services": {name: spec(1, "a")}}});
        assert!(taken_anew(Bundle::kind(), Some(&bundle("a")), &bundle("a")).is_none());
        assert_eq!(taken_anew(Bundle::kind(), Some(&bundle("a")), &bundle("b")).unwrap().0, "spec.services.b.template");
        for content in [json!({"template": spec(1, "a")["template"]}), json!({"bundle": bundle("a")["spec"]})] {
            assert!(taken_anew(Revision::kind(), None, &json!({"spec": {"content": content}})).is_some());
        }
    }
}
