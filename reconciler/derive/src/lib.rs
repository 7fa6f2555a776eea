//! `#[derive(Resource)]`: a spec becomes a kind.
//!
//! On `struct SiteSpec` it writes `struct Site { metadata, spec, status }`, its JSON form and the `Resource`
//! implementation. Attributes, in `#[resource(…)]`:
//!
//! | attribute | meaning | default |
//! | --- | --- | --- |
//! | `group`, `version`, `kind` | names, as strings | needed |
//! | `status = Type` | what is observed | `()`-like empty status |
//! | `plural`, `singular` | names in URLs | `kind` in lower case, with `s` |
//! | `short("st", …)` | short names for people | none |
//! | `scope = "Cluster"` | cluster-scoped | `"Namespaced"` |
//! | `unmanaged` | only controllers write it: no managedFields | off |
//! | `validate = path` | `fn(&Site, Option<&Site>) -> Vec<Fault>` | accepts all |
//! | `sensitive("/spec/password", …)` | sealed at rest, read as a digest | none |
//! | `column("STATE", "/status/state")`, `wide_column(…)` | what tables show | none |
//! | `crate = path` | where `reconciler_api` is found | `::reconciler_api` |

#![warn(missing_docs)]

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{DeriveInput, Ident, LitStr, Path, Token, Type, parenthesized, parse_macro_input};

/// Makes a kind of the spec that it stands on; the crate's page lists its attributes. What is said about the spec is
/// said about the object too, and in its JSON Schema.
///
/// # Errors
/// What is missing or not known in `#[resource(…)]`, where it stands.
#[proc_macro_derive(Resource, attributes(resource))]
pub fn derive_resource(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

#[derive(Default)]
struct Attributes {
    group: Option<LitStr>,
    version: Option<LitStr>,
    kind: Option<LitStr>,
    plural: Option<LitStr>,
    singular: Option<LitStr>,
    scope: Option<LitStr>,
    status: Option<Type>,
    validate: Option<Path>,
    krate: Option<Path>,
    short: Vec<LitStr>,
    sensitive: Vec<LitStr>,
    columns: Vec<(LitStr, LitStr, bool)>,
    unmanaged: bool,
}

impl Parse for Attributes {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut attributes = Self::default();
        while !input.is_empty() {
            let name: Ident = input.call(syn::ext::IdentExt::parse_any)?;
            attributes.take(&name, input)?;
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(attributes)
    }
}

impl Attributes {
    fn take(&mut self, name: &Ident, input: ParseStream) -> syn::Result<()> {
        match name.to_string().as_str() {
            "group" => self.group = Some(value(input)?),
            "version" => self.version = Some(value(input)?),
            "kind" => self.kind = Some(value(input)?),
            "plural" => self.plural = Some(value(input)?),
            "singular" => self.singular = Some(value(input)?),
            "scope" => self.scope = Some(value(input)?),
            "status" => self.status = Some(value(input)?),
            "validate" => self.validate = Some(value(input)?),
            "crate" => self.krate = Some(value(input)?),
            "unmanaged" => self.unmanaged = true,
            "short" => self.short.extend(strings(input)?),
            "sensitive" => self.sensitive.extend(strings(input)?),
            "column" | "wide_column" => match strings(input)?.as_slice() {
                [title, pointer] => self.columns.push((title.clone(), pointer.clone(), name == "wide_column")),
                _ => return Err(syn::Error::new(name.span(), "expected (\"NAME\", \"/json/pointer\")")),
            },
            _ => return Err(syn::Error::new(name.span(), "unknown attribute of resource")),
        }
        Ok(())
    }
}

fn value<T: Parse>(input: ParseStream) -> syn::Result<T> {
    input.parse::<Token![=]>()?;
    input.parse()
}

fn strings(input: ParseStream) -> syn::Result<Vec<LitStr>> {
    let inner;
    parenthesized!(inner in input);
    Ok(Punctuated::<LitStr, Token![,]>::parse_terminated(&inner)?.into_iter().collect())
}

fn expand(input: &DeriveInput) -> syn::Result<TokenStream> {
    let attribute =
        input.attrs.iter().find(|attribute| attribute.path().is_ident("resource")).ok_or_else(|| {
            syn::Error::new_spanned(&input.ident, "needs #[resource(group = …, version = …, kind = …)]")
        })?;
    let attributes: Attributes = attribute.parse_args()?;
    let needed = |value: &Option<LitStr>, name: &str| {
        value.clone().ok_or_else(|| syn::Error::new_spanned(attribute, format!("needs {name} = \"…\"")))
    };
    let (group, version, kind) = (
        needed(&attributes.group, "group")?,
        needed(&attributes.version, "version")?,
        needed(&attributes.kind, "kind")?,
    );
    let lower = kind.value().to_lowercase();
    let singular = attributes.singular.unwrap_or_else(|| LitStr::new(&lower, kind.span()));
    let plural = attributes.plural.unwrap_or_else(|| LitStr::new(&format!("{lower}s"), kind.span()));
    let scope = match attributes.scope.as_ref().map(LitStr::value).as_deref() {
        None | Some("Namespaced") => quote!(Namespaced),
        Some("Cluster") => quote!(Cluster),
        Some(_) => return Err(syn::Error::new_spanned(&attributes.scope, "scope is \"Namespaced\" or \"Cluster\"")),
    };
    let managed = !attributes.unmanaged;
    let krate = attributes.krate.unwrap_or_else(|| syn::parse_quote!(::reconciler_api));
    let object = Ident::new(&kind.value(), kind.span());
    let helper = format_ident!("{}Json", object);
    let spec = &input.ident;
    let visibility = &input.vis;
    let docs: Vec<_> = input.attrs.iter().filter(|attribute| attribute.path().is_ident("doc")).collect();
    let short = &attributes.short;
    let sensitive = &attributes.sensitive;
    let columns = attributes.columns.iter().map(|(name, pointer, wide)| {
        quote!(#krate::Column {
            name: #name.into(), pointer: #pointer.into(), r#type: #krate::ColumnType::String, wide: #wide,
        })
    });
    let status = attributes.status.unwrap_or_else(|| syn::parse_quote!(#krate::meta::NoStatus));
    let validate = match attributes.validate {
        Some(path) => quote!(#path(self, previous)),
        None => quote!({
            let _ = previous;
            ::std::vec::Vec::new()
        }),
    };
    let serde = quote!(#krate::derive_support::serde);
    let serde_path = quote!(#krate::derive_support::serde).to_string().replace(' ', "");
    let schemars = quote!(#krate::derive_support::schemars);
    let schemars_path = schemars.to_string().replace(' ', "");

    Ok(quote! {
        #(#docs)*
        #[derive(Clone, Debug, PartialEq)]
        #visibility struct #object {
            /// Name, namespace, labels, owners, and what the objects layer writes.
            pub metadata: #krate::ObjectMeta,
            /// What is wanted.
            pub spec: #spec,
            /// What was observed; `None` until the kind's controller has said so.
            pub status: ::std::option::Option<#status>,
        }

        const _: () = {
            // The JSON form; `apiVersion` and `kind` are constants, so that no object carries them in memory. Its
            // schema is described by what the author says of the kind.
            #(#docs)*
            #[derive(#serde::Deserialize, #schemars::JsonSchema)]
            #[serde(crate = #serde_path, rename_all = "camelCase")]
            #[schemars(crate = #schemars_path, rename = #kind)]
            struct #helper {
                /// Group and version of the kind, such as `example.dev/v1`.
                #[serde(default)]
                api_version: ::std::option::Option<::std::string::String>,
                /// Name of the kind, in CamelCase.
                #[serde(default)]
                kind: ::std::option::Option<::std::string::String>,
                #[serde(default)]
                metadata: #krate::ObjectMeta,
                spec: #spec,
                #[serde(default)]
                status: ::std::option::Option<#status>,
            }

            impl #serde::Serialize for #object {
                fn serialize<S: #serde::Serializer>(&self, serializer: S) -> ::std::result::Result<S::Ok, S::Error> {
                    use #serde::ser::SerializeStruct as _;
                    let kind = <Self as #krate::Resource>::kind();
                    let fields = 4 + usize::from(self.status.is_some());
                    let mut out = serializer.serialize_struct(#kind, fields)?;
                    out.serialize_field("apiVersion", &kind.api_version())?;
                    out.serialize_field("kind", &kind.kind)?;
                    out.serialize_field("metadata", &self.metadata)?;
                    out.serialize_field("spec", &self.spec)?;
                    match &self.status {
                        ::std::option::Option::Some(status) => out.serialize_field("status", status)?,
                        ::std::option::Option::None => out.skip_field("status")?,
                    }
                    out.end()
                }
            }

            impl<'de> #serde::Deserialize<'de> for #object {
                fn deserialize<D: #serde::Deserializer<'de>>(deserializer: D) -> ::std::result::Result<Self, D::Error> {
                    let json = <#helper as #serde::Deserialize>::deserialize(deserializer)?;
                    #krate::derive_support::check_types(
                        <Self as #krate::Resource>::kind(), json.api_version.as_deref(), json.kind.as_deref(),
                    ).map_err(#serde::de::Error::custom)?;
                    ::std::result::Result::Ok(Self { metadata: json.metadata, spec: json.spec, status: json.status })
                }
            }

            impl #krate::Resource for #object {
                type Spec = #spec;
                type Status = #status;

                fn kind() -> &'static #krate::Kind {
                    static KIND: ::std::sync::LazyLock<#krate::Kind> = ::std::sync::LazyLock::new(|| #krate::Kind {
                        group: #group.into(),
                        version: #version.into(),
                        kind: #kind.into(),
                        plural: #plural.into(),
                        singular: #singular.into(),
                        short_names: ::std::vec![#(#short.into()),*],
                        scope: #krate::Scope::#scope,
                        managed_fields: #managed,
                        sensitive: ::std::vec![#(#sensitive.into()),*],
                        columns: ::std::vec![#(#columns),*],
                    });
                    &KIND
                }

                fn new(name: impl ::std::convert::Into<::std::string::String>, spec: #spec) -> Self {
                    Self { metadata: #krate::ObjectMeta::named(name), spec, status: ::std::option::Option::None }
                }

                fn meta(&self) -> &#krate::ObjectMeta { &self.metadata }
                fn meta_mut(&mut self) -> &mut #krate::ObjectMeta { &mut self.metadata }
                fn spec(&self) -> &#spec { &self.spec }
                fn spec_mut(&mut self) -> &mut #spec { &mut self.spec }
                fn status(&self) -> ::std::option::Option<&#status> { self.status.as_ref() }
                fn status_mut(&mut self) -> &mut ::std::option::Option<#status> { &mut self.status }

                fn schema() -> #schemars::Schema {
                    #schemars::generate::SchemaSettings::draft2020_12()
                        .into_generator()
                        .into_root_schema_for::<#helper>()
                }

                fn validate(&self, previous: ::std::option::Option<&Self>) -> ::std::vec::Vec<#krate::Fault> {
                    #validate
                }
            }
        };
    })
}
