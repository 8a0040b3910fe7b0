//! A resource of the three kinds as it is kept in memory: as text, because the tree of its fields takes ten times the
//! room. It is read when it is looked at.

use crate::slim::Slim;
use crate::world::{references, template_of};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use s3_crds::Kind;
use std::borrow::Cow;
use std::sync::Arc;

/// See the module.
#[derive(Clone)]
pub struct Kept {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// The resources that it refers to.
    pub refers: Vec<(Kind, String)>,
    /// The `EvalRun` after which its schedule is made.
    pub template: Option<String>,
    text: Box<str>,
}

impl Kept {
    /// Of a resource as the server gave it.
    pub fn of(object: DynamicObject) -> Self {
        let (refers, template) = (references(&object), template_of(&object).map(str::to_owned));
        Self { refers, template, text: object.data.to_string().into(), metadata: object.metadata }
    }

    /// It, as the server gave it.
    pub fn object(&self) -> Arc<DynamicObject> {
        // What was written as JSON is JSON.
        let data = serde_json::from_str(&self.text).unwrap_or_default();
        Arc::new(DynamicObject { types: None, metadata: self.metadata.clone(), data })
    }
}

/// The same event of what is kept.
pub fn kept(event: Event<DynamicObject>) -> Event<Kept> {
    match event {
        Event::Apply(object) => Event::Apply(Kept::of(object)),
        Event::Delete(object) => Event::Delete(Kept::of(object)),
        Event::InitApply(object) => Event::InitApply(Kept::of(object)),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    }
}

impl Slim for Kept {}

impl Resource for Kept {
    type DynamicType = Kind;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        kind.name().into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        s3_crds::api_resource(*kind).group.into()
    }

    fn version(kind: &Kind) -> Cow<'_, str> {
        s3_crds::api_resource(*kind).version.into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        s3_crds::api_resource(*kind).plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
